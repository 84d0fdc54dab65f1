"""Step times from NVIDIA's measured operation tables, for devices that nobody here has: package
``aiconfigurator-core`` (extra ``plan``), behind this one adapter.

The tables are steady-state sums of kernels: host time and element-wise work are missing, so the time of one step is
``scale`` x table + ``constant``, fitted to curves of ours where there are some.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.planning.steps import MeasuredSteps, rising

__all__ = ["FORMATS", "PACKAGE", "package_folder", "step_times"]

PACKAGE = "aiconfigurator_core"

FORMATS: Mapping[str, str] = {"exact": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}
"""Our names of number formats → the tables' names of matrix products."""
ROWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WRITERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DECODE_CONTEXT = 1024
FAR_CONTEXT = 16_384


def package_folder() -> Path | None:
    """Where the package's files are, told without running its code; ``None`` where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) if folders else None


def step_times(
    model: str,
    system: str,
    *,
    prefill: str = "exact",
    decode: str = "exact",
    tensor_parallel: int = 1,
    scale: float = 1.0,
    constant: float = 0.0,
) -> MeasuredSteps:
    """Curves for one engine.

    Args:
        model: hub id of a model whose configuration the package knows, such as ``Qwen/Qwen3-8B``.
        system: the package's name of a GPU, such as ``h100_sxm`` or ``b200_sxm``.
        prefill, decode: number formats, one of :data:`FORMATS`.
        scale, constant: the fit; seconds for the constant.

    Raises:
        MissingDependencyError: the package is not installed.
        ConfigError: the tables do not know the model, the system or the format there.
    """
    read = _engine(model, system, _format(prefill), tensor_parallel)
    wrote = _engine(model, system, _format(decode), tensor_parallel)

    def fitted(milliseconds: float) -> float:
        return scale * milliseconds / 1000 + constant

    try:
        cold = [(rows, fitted(read.predict_prefill_latency(1, rows, 0))) for rows in ROWS]
        near = [(count, fitted(wrote.predict_decode_latency(count, DECODE_CONTEXT, 2))) for count in WRITERS]
        far = wrote.predict_decode_latency(8, FAR_CONTEXT, 2) - wrote.predict_decode_latency(8, DECODE_CONTEXT, 2)
        warm = read.predict_prefill_latency(1, 2048 + 8192, 8192) - read.predict_prefill_latency(1, 2048, 0)
    except Exception as error:  # the package's own errors have no common class
        raise ConfigError(f"aiconfigurator-core has no tables for {model!r} on {system!r}: {error}") from error
    return MeasuredSteps(
        source=f"aiconfigurator-core {_version()}: {model} on {system}, prefill {prefill}, decode {decode}"
        + (f", {tensor_parallel} GPUs" if tensor_parallel > 1 else "")
        + (f", fitted: {scale:.3g} x table + {constant * 1e3:.3g} ms" if (scale, constant) != (1.0, 0.0) else ""),
        prefill=rising(cold),
        decode=rising(near),
        decode_context=DECODE_CONTEXT,
        attention=max(0.0, scale * warm / 1000) / (2048 * 8192),
        writer_context=max(0.0, scale * far / 1000) / (8 * (FAR_CONTEXT - DECODE_CONTEXT)),
    )


def _format(name: str) -> str:
    if name not in FORMATS:
        raise ConfigError(f"aiconfigurator-core has no tables for format {name!r}; it knows {', '.join(FORMATS)}")
    return FORMATS[name]


def _version() -> str:
    from importlib.metadata import version

    return version("aiconfigurator-core")


@functools.cache
def _engine(model: str, system: str, products: str, tensor_parallel: int) -> Any:
    """The package's engine of one model, GPU and format of matrix products; what else there is stays in 16 bits."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # it tells each table that it falls back to
    try:
        import aiconfigurator_core
        from aiconfigurator_core.sdk.engine import compile_engine
    except ImportError as error:
        raise MissingDependencyError(
            "step times of other devices need aiconfigurator-core; install mixquant-agents[plan], or give --steps"
        ) from error
    try:
        spec = compile_engine(
            model,
            system,
            "vllm",
            tp_size=tensor_parallel,
            gemm_quant_mode=products,
            kvcache_quant_mode="bfloat16",
            fmha_quant_mode="bfloat16",
        )
        return aiconfigurator_core.AicEngine.from_spec(spec, None)
    except Exception as error:  # the package's own errors have no common class
        raise ConfigError(
            f"aiconfigurator-core cannot model {model!r} on {system!r} with {products} products: {error}"
        ) from error
