"""Step times from NVIDIA's measured operation tables, for devices that nobody here has: package
``aiconfigurator-core`` (extra ``plan``), behind this one adapter.

The tables are steady-state sums of kernels: host time and element-wise work are missing, so the time of one step is
``scale`` x table + ``constant``, fitted to curves of ours where there are some.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.planning.steps import MeasuredSteps, rising

__all__ = ["FORMATS", "PACKAGE", "gpus_in", "model_config", "package_folder", "step_times", "tables_folder"]

PACKAGE = "aiconfigurator_core"

FORMATS: Mapping[str, str] = {"exact": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}
"""Our names of number formats → the tables' names of matrix products."""
EXPERTS: Mapping[str, str] = {"exact": "bfloat16", "fp8": "fp8_block", "nvfp4": "nvfp4"}
"""The same of experts' products. FP8 by blocks has scales as fine as ours; the tables' FP8 of whole tensors is slower
than 16 bits (an H200, Qwen3-30B-A3B, 2048 rows: 87 ms against 40, and 36 by blocks; ours took 29)."""
ROWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WRITERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DECODE_CONTEXT = 1024
FAR_CONTEXT = 16_384


def package_folder() -> Path | None:
    """Where the package's files are, found without running its code; ``None`` where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0]) if folders else None


def gpus_in(systems: Path) -> list[str]:
    """The GPUs that aiconfigurator-core's folder ``systems`` describes and has tables of."""
    return sorted(path.name for path in (systems / "data").glob("*") if (systems / f"{path.name}.yaml").is_file())


def tables_folder() -> Path:
    """Where the package's files are.

    Raises:
        MissingDependencyError: it is not installed.
    """
    folder = package_folder()
    if folder is None:
        raise MissingDependencyError(
            "memory of other devices needs aiconfigurator-core; install mixquant-agents[plan], or give --kv-tokens and "
            "--steps"
        )
    return folder


def model_config(model: str) -> dict[str, Any]:
    """``config.json`` of a model: of its folder, or as the package knows it by its hub id.

    Raises:
        ConfigError: neither is there.
        MissingDependencyError: the package is not installed.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        path = tables_folder() / "model_configs" / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        raise ConfigError(f"aiconfigurator-core has no configuration of {model!r}; give a model's folder")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def step_times(
    model: str,
    system: str,
    *,
    prefill: str = "exact",
    decode: str = "exact",
    tensor_parallel: int = 1,
    twin_share: float = 1.0,
    scale: float = 1.0,
    constant: float = 0.0,
) -> MeasuredSteps:
    """Curves for one engine.

    Args:
        model: hub id of a model whose configuration the package knows, such as ``Qwen/Qwen3-8B``.
        system: the package's name of a GPU, such as ``h100_sxm`` or ``b200_sxm``.
        prefill, decode: number formats, one of :data:`FORMATS`.
        twin_share: of a mixture's layers of experts, those that are read in ``prefill``; the others are read exact.
        scale, constant: the fit; seconds for the constant.

    Raises:
        MissingDependencyError: the package is not installed.
        ConfigError: the tables do not know the model, the system or the format there.
    """
    for name in (prefill, decode):
        _check_format(name)
    read = _engine(model, system, prefill, tensor_parallel)
    wrote = _engine(model, system, decode, tensor_parallel)
    partly = read
    if prefill != "exact" and _has_experts(model):
        partly = _engine(model, system, prefill, tensor_parallel, experts="exact")

    def fitted(milliseconds: float) -> float:
        return scale * milliseconds / 1000 + constant

    def reading(rows: int, cached: int) -> float:
        """Milliseconds; experts are read quantized where that is no slower, as an engine's measured thresholds do."""
        exact_experts = float(partly.predict_prefill_latency(1, rows, cached))
        quantized = float(read.predict_prefill_latency(1, rows, cached))
        return exact_experts + twin_share * min(0.0, quantized - exact_experts)

    try:
        cold = [(rows, fitted(reading(rows, 0))) for rows in ROWS]
        near = [(count, fitted(wrote.predict_decode_latency(count, DECODE_CONTEXT, 2))) for count in WRITERS]
        far = wrote.predict_decode_latency(8, FAR_CONTEXT, 2) - wrote.predict_decode_latency(8, DECODE_CONTEXT, 2)
        warm = reading(2048 + 8192, 8192) - reading(2048, 0)
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


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise ConfigError(f"aiconfigurator-core has no tables for format {name!r}; it knows {', '.join(FORMATS)}")


def _has_experts(model: str) -> bool:
    try:
        return bool(model_config(model).get("num_experts"))
    except ConfigError:  # a name that the package's tables will know or refuse
        return False


def _version() -> str:
    from importlib.metadata import version

    return version("aiconfigurator-core")


@functools.cache
def _engine(model: str, system: str, products: str, tensor_parallel: int, experts: str = "") -> Any:
    """The package's engine of one model, GPU and format of matrix products, ``experts`` in another; what else there is
    stays in 16 bits."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # it tells each table that it falls back to
    try:
        import aiconfigurator_core
        from aiconfigurator_core.sdk.engine import compile_engine
    except ImportError as error:
        raise MissingDependencyError(
            "step times of other devices need aiconfigurator-core; install mixquant-agents[plan], or give --steps"
        ) from error
    systems = Path(aiconfigurator_core.__file__).parent / "systems"
    known = gpus_in(systems)
    if known and system not in known:
        raise ConfigError(f"aiconfigurator-core has no tables for GPU {system!r}; it has {', '.join(known)}")
    try:
        spec = compile_engine(
            model,
            system,
            "vllm",
            tp_size=tensor_parallel,
            gemm_quant_mode=FORMATS[products],
            **(
                {"moe_quant_mode": EXPERTS[experts or products], "moe_tp_size": tensor_parallel}
                if _has_experts(model)
                else {}
            ),
            kvcache_quant_mode="bfloat16",
            fmha_quant_mode="bfloat16",
        )
        return aiconfigurator_core.AicEngine.from_spec(spec, None)
    except Exception as error:  # the package's own errors have no common class
        raise ConfigError(
            f"aiconfigurator-core cannot model {model!r} on {system!r} with {products} products: {error}"
        ) from error
