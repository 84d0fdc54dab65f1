"""Engine-wide settings that the method needs on a GPU, put into vLLM's configuration where the user left them open."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixquant_agents.config import CAPTURE_SIZES
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.resolve import ResolvedPolicy, resolve
from mixquant_agents.quant.vllm.options import FULL_GRAPHS
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_config"]

_log = logging.getLogger("vllm.mixquant")

LARGE_MEMORY = 40 * 2**30
"""Bytes of GPU memory from which graphs above 2048 rows are captured by default."""

FUSE_BOUNDARY = 128
"""Up to so many rows vLLM's compiled pieces stay as they are."""


def hook_config() -> None:
    """Hook vLLM's configuration, in the process that makes it. Idempotent; touches engines of this method only."""
    from vllm.config import VllmConfig

    wrap(VllmConfig, "__post_init__", _refuse_graphs)
    wrap(VllmConfig, "_get_quantization_config", _method)
    if not isinstance(VllmConfig.__dict__["_get_quantization_config"], staticmethod):
        VllmConfig._get_quantization_config = staticmethod(VllmConfig._get_quantization_config)
    wrap(VllmConfig, "_set_cudagraph_sizes", _sizes)
    wrap(VllmConfig, "_set_compile_ranges", _ranges)


@functools.cache
def _code() -> str:
    """Digest of this package: compiled graphs hold its operations, so it belongs to the compile cache's key."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _resolved(config: Any) -> ResolvedPolicy | None:
    """The policy of a quantization config as this GPU will run it; ``None`` for other methods and devices."""
    from vllm.platforms import current_platform

    from mixquant_agents.quant.vllm.method import MixQuantConfig, device_info

    if not isinstance(config, MixQuantConfig) or not current_platform.is_cuda():
        return None
    own_config: MixQuantConfig = config
    return resolve(own_config.policy, device_info())


def _refuse_graphs(original: Callable[..., Any]) -> Callable[..., Any]:
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - vLLM's name
        sizes_asked = list(self.compilation_config.cudagraph_capture_sizes or ())
        original(self, *args, **kwargs)
        resolved = _resolved(self.quant_config)
        if sizes_asked and resolved is not None and resolved.emulated:
            raise ConfigError(
                f"capture_sizes with {resolved.prefill_format.value}, which runs emulated here ({resolved.reason}): an "
                "emulation routes rows in Python, which no CUDA graph holds; leave capture_sizes None, or use a policy "
                "that this device runs natively"
            )

    return __post_init__


def _method(original: Callable[..., Any]) -> Callable[..., Any]:
    def _get_quantization_config(model_config: Any, *args: Any, **kwargs: Any) -> Any:
        config = original(model_config, *args, **kwargs)
        resolved = _resolved(config)
        if resolved is not None and resolved.emulated and not model_config.enforce_eager:
            _log.warning(
                "mixquant: %s runs emulated here, which routes rows in Python at each step: the engine is eager",
                resolved.prefill_format.value,
            )
            model_config.enforce_eager = True
        return config

    return _get_quantization_config


def _sizes(original: Callable[..., Any]) -> Callable[..., Any]:
    def _set_cudagraph_sizes(self: Any) -> Any:
        resolved = _resolved(self.quant_config)
        if resolved is not None and resolved.quantizes:
            _adjust(self, resolved)
        return original(self)

    return _set_cudagraph_sizes


def _adjust(vllm_config: Any, resolved: ResolvedPolicy) -> None:
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform

    compilation = vllm_config.compilation_config
    if resolved.emulated:
        return
    if resolved.policy.reproducible and compilation.cudagraph_mode.has_full_cudagraphs():
        # A full graph of one row per request cannot tell a prompt's one-row remainder from decode.
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    elif compilation.cudagraph_mode == CUDAGraphMode.FULL:
        compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE  # each mode has graphs of its own
        if isinstance(vllm_config.additional_config, dict):
            vllm_config.additional_config.setdefault(FULL_GRAPHS, True)
    if compilation.max_cudagraph_capture_size is None and not compilation.cudagraph_capture_sizes:
        max_rows = vllm_config.scheduler_config.max_num_batched_tokens
        if current_platform.get_device_total_memory() < LARGE_MEMORY:
            max_rows = min(max_rows, 2048)
        compilation.cudagraph_capture_sizes = [size for size in CAPTURE_SIZES if size <= max_rows]
    if isinstance(vllm_config.additional_config, dict):
        vllm_config.additional_config["mixquant_gpu"] = _code()


def _ranges(original: Callable[..., Any]) -> Callable[..., Any]:
    def _set_compile_ranges(self: Any) -> Any:
        resolved = _resolved(self.quant_config)
        if resolved is not None and resolved.quantizes and not resolved.emulated:
            compilation = self.compilation_config
            boundaries = list(compilation.compile_ranges_endpoints or [])
            if FUSE_BOUNDARY not in boundaries:
                compilation.compile_ranges_endpoints = [*boundaries, FUSE_BOUNDARY]
        return original(self)

    return _set_compile_ranges
