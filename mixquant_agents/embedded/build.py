"""One preparation: load, merge, save. Pure work on a folder; locking and atomicity are the store's."""

from __future__ import annotations

import errno
import hashlib
import pathlib
from typing import Any

from mixquant_agents.embedded.adapter import adapter_folder, adapter_identity, merge
from mixquant_agents.embedded.progress import Progress
from mixquant_agents.embedded.source import Source
from mixquant_agents.errors import MissingDependencyError

__all__ = ["build", "recipe"]

RECIPE = 2
"""Raised whenever this module would write different files from the same parts."""

SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model's card recommends; used where a caller names no temperature. At 1.0 a model this small rambles."""

TEMPLATE = pathlib.Path(__file__).parents[1] / "templates" / "hermes.jinja"


def recipe(source: Source, *, adapter: bool) -> dict[str, Any]:
    """Everything the prepared files depend on; its hash is the cache key."""
    folder = adapter_folder() if adapter else None
    return {
        "recipe": RECIPE,
        "source": source.identity,
        "adapter": adapter_identity(folder) if folder else None,
        "template": hashlib.sha256(TEMPLATE.read_bytes()).hexdigest(),
    }


def build(folder: pathlib.Path, source: Source, progress: Progress, *, adapter: bool) -> None:
    """Write the prepared model into the empty ``folder``: float32 safetensors, tokenizer, chat template."""
    progress("loading libraries", 0.02)
    try:
        import transformers
        from transformers import modeling_gguf_pytorch_utils as gguf
    except ImportError as error:
        raise MissingDependencyError(
            f"the embedded model needs transformers ({error}); install mixquant-agents[cpu] or mixquant-agents[gpu]"
        ) from error
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # ours is the only one on screen
    bar, gguf.tqdm = gguf.tqdm, lambda tensors, **_: tensors  # the GGUF reader's own does not heed the line above
    try:
        progress("reading and dequantizing the weights (about 10 s)", 0.15)
        model, tokenizer = source.load()
        merged = adapter_folder() if adapter else None
        if merged is not None:
            progress("merging the tool-use adapter", 0.8)
            merge(model, merged)
        progress("writing", 0.85)
        tokenizer.chat_template = TEMPLATE.read_text()
        _save(model, tokenizer, folder)
    finally:
        transformers.logging.set_verbosity(verbosity)
        gguf.tqdm = bar
        if bars:
            transformers.logging.enable_progress_bar()


def _save(model: Any, tokenizer: Any, folder: pathlib.Path) -> None:
    """Save both; a failed write is always an ``OSError`` (safetensors has an error type of its own for it)."""
    from safetensors import SafetensorError

    try:
        model.generation_config.update(**SAMPLING)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
