"""Which names ``vllm_args`` may hold, read without importing vLLM: a chat model refuses a wrong one when it is made."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path

from mixquant_agents.errors import ConfigError

__all__ = ["check_names", "installed_names"]

_OURS = {
    **{name: name for name in ("model", "revision", "dtype", "max_model_len", "max_num_seqs", "seed", "tokenizer")},
    **{name: name for name in ("max_num_batched_tokens", "gpu_memory_utilization", "tensor_parallel_size")},
    **{name: name for name in ("enable_prefix_caching", "enforce_eager", "trust_remote_code")},
    "quantization": "policy",
    "hf_overrides": "policy",
    "kv_cache_memory_bytes": "kv_cache_bytes",
    "cudagraph_capture_sizes": "capture_sizes",
}
"""Engine arguments that this library sets itself → the field of ``EngineConfig`` to use."""


def check_names(given: Mapping[str, object], known: Collection[str]) -> None:
    """Refuse what ``EngineConfig`` has a field for, and what vLLM does not know.

    Args:
        given: ``EngineConfig.vllm_args``.
        known: names of vLLM's engine arguments; empty where they are not known.

    Raises:
        ConfigError: one of the names is wrong.
    """
    for name in given:
        if name in _OURS:
            raise ConfigError(
                f"vllm_args[{name!r}] is set by this library; use EngineConfig.{_OURS[name]} or the policy instead"
            )
        if known and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"vllm_args[{name!r}]: the installed vLLM has no such engine argument{hint}")


@functools.cache
def installed_names() -> frozenset[str]:
    """Fields of the installed vLLM's ``AsyncEngineArgs``, read from its source; empty where vLLM is not installed."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return frozenset()
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
