"""Prefill predicted from NVIDIA's own measurements: the per-operation tables in the wheel ``aiconfigurator-core``.

The tables hold, for each GPU, how long vLLM's Linear kernels took by rows, outputs and inputs (BF16, FP8 and NVFP4, the
quantization of the input included), and its prefill attention by length. Between their points time is interpolated
linearly. A prompt's products and attention come from them; norms, activations and the host are the roofline's
(:mod:`~mixquant_agents.bench.prefill.roofline`), since the tables have no such thing. So this is a *prediction*, too:
measured operations, added up. It is shown beside the roofline, part by part.

The tables are read straight from the installed wheel's files; its code is never run. An optional extra:
``pip install 'mixquant-agents[tables]'``.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill.roofline import FITS, GPUS, H100, Mode, ModelShape, chunks, parts
from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.planning.aiconfigurator import PACKAGE, package_folder

__all__ = ["SYSTEMS", "Curve", "Tables", "installed", "load", "table_parts"]

SYSTEMS = {"b200": "b200_sxm", "rtx-pro-6000": "rtx_pro_6000_server", "h100": "h100_sxm", "h200": "h200_sxm"}
"""GPUs of the roofline, and their folders in the wheel."""

_DTYPES: dict[Mode, str] = {"exact": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds over sizes, both rising in size; linear between them."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, size: float, power: float = 1.0) -> float:
        """Seconds at ``size``; behind the last size they grow by its ``power``, below the first they stay."""
        if size <= self.sizes[0]:
            return self.seconds[0]
        if size >= self.sizes[-1]:
            return float(self.seconds[-1] * (size / self.sizes[-1]) ** power)
        right = bisect.bisect_right(self.sizes, size)
        a, b = self.sizes[right - 1], self.sizes[right]
        share = (size - a) / (b - a)
        return self.seconds[right - 1] * (1 - share) + self.seconds[right] * share


@dataclass(frozen=True, slots=True)
class Tables:
    """Of one GPU.

    Attributes:
        source: package, its version, and vLLM's version that was measured.
        products: by dtype: by outputs: by inputs: seconds over rows.
        attention: seconds over prompt length, by ``(heads, key heads, head size)``; one sequence, causal, BF16.
    """

    source: str
    products: Mapping[str, Mapping[int, Mapping[int, Curve]]]
    attention: Mapping[tuple[int, int, int], Curve]

    def product_seconds(self, n: int, k: int, rows: int, mode: Mode) -> float:
        """Of ``[rows, k] x [k, n]`` with the quantization of its input, in chunks.

        Raises:
            ConfigError: the tables have no such dtype.
        """
        grid = self.products.get(_DTYPES[mode])
        if not grid:
            raise ConfigError(f"the tables ({self.source}) have no {_DTYPES[mode]} products")
        return sum(
            _between(grid, n, lambda by_inputs: _between(by_inputs, k, lambda curve: curve.at(new)))  # noqa: B023 - called at once
            for new, _ in chunks(rows, 0)
        )

    def attention_seconds(self, shape: ModelShape, tokens: int, cached: int) -> float:
        """Of one block over a whole prompt of ``tokens`` behind ``cached`` ones.

        Raises:
            ConfigError: the tables have no such heads.
        """
        key = shape.heads, shape.key_heads, shape.head_dim
        if key not in self.attention:
            raise ConfigError(
                f"the tables ({self.source}) have no attention of {key[0]} heads over {key[1]} of {key[2]}; leave "
                "the tables out"
            )
        curve = self.attention[key]
        return curve.at(tokens + cached, 2.0) - (curve.at(cached, 2.0) if cached else 0.0)


def _between(grid: Mapping[int, Any], size: int, seconds: Any) -> float:
    """Linear between the two sizes around ``size``; beyond the largest, in proportion to it."""
    sizes = sorted(grid)
    if size in grid:
        return float(seconds(grid[size]))
    right = min(max(1, bisect.bisect_right(sizes, size)), len(sizes) - 1)
    a, b = sizes[right - 1], sizes[right]
    low, high = float(seconds(grid[a])), float(seconds(grid[b]))
    return low + (high - low) * (size - a) / (b - a)


def installed() -> Path | None:
    """The folder of the tables; ``None`` where the wheel is not installed."""
    folder = package_folder()
    return folder / "systems" / "data" if folder is not None else None


@functools.cache
def load(gpu: str, folder: Path | None = None) -> Tables:
    """The tables of ``gpu``.

    Args:
        gpu: a key of :data:`SYSTEMS`.
        folder: of the tables; the installed wheel's where ``None``.

    Raises:
        ConfigError: no tables of this GPU.
        MissingDependencyError: the wheel, or what reads its files, is not installed.
    """
    if gpu not in SYSTEMS:
        raise ConfigError(f"no measured tables of GPU {gpu!r}; there are some of {', '.join(SYSTEMS)}")
    folder = folder or installed()
    if folder is None:
        raise MissingDependencyError("the measured tables are an optional extra: pip install 'mixquant-agents[tables]'")
    system = folder / SYSTEMS[gpu]
    products, version = _read(system, "gemm", "gemm_perf", ["gemm_dtype", "n", "k", "m", "latency"])
    attention, _ = _read(
        system,
        "attention",
        "context_attention_perf",
        ["num_heads", "num_key_value_heads", "head_dim", "isl", "latency"],
        batch_size=1,
        window_size=0,
        step=0,
        attn_dtype="bfloat16",
        kv_cache_dtype="bfloat16",
    )
    grid: dict[str, dict[int, dict[int, Curve]]] = {}
    for (dtype, n, k), curve in _curves(products, 3).items():
        grid.setdefault(dtype, {}).setdefault(n, {})[k] = curve
    return Tables(f"{PACKAGE}, vLLM {version}", grid, _curves(attention, 3))


def _read(system: Path, kind: str, name: str, columns: list[str], **only: object) -> tuple[list[tuple[Any, ...]], str]:
    """Rows of the newest vLLM's table, and that version."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "the measured tables are read by pyarrow: pip install 'mixquant-agents[tables]'"
        ) from error
    files = sorted(system.glob(f"{kind}/vllm/*/{name}.parquet"), key=lambda path: _version(path.parent.name))
    if not files:
        raise ConfigError(f"{system} holds no {kind} table of vLLM")
    filters = [(column, "==", value) for column, value in only.items()] or None
    table = parquet.read_table(files[-1], columns=columns, filters=filters)
    return list(zip(*(table.column(column).to_pylist() for column in columns), strict=True)), files[-1].parent.name


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in text.split("."))


def _curves(rows: Sequence[tuple[Any, ...]], keys: int) -> dict[Any, Curve]:
    """Curves by the first ``keys`` columns, over the next, of the last, which is in milliseconds. The smallest time
    counts where a point was measured more than once (several kernels)."""
    points: dict[Any, dict[int, float]] = {}
    for row in rows:
        own = points.setdefault(row[:keys], {})
        size, seconds = row[keys], row[-1] / 1e3
        own[size] = min(seconds, own.get(size, seconds))
    return {
        key: Curve(tuple(sorted(own)), tuple(own[size] for size in sorted(own))) for key, own in points.items() if own
    }


def table_parts(model: ModelShape, tokens: int, mode: Mode, gpu: str, tables: Tables) -> dict[str, float]:
    """Seconds of a cold prefill by part: products (the output layer's included) and attention by the tables; the rest
    by the roofline, exact in all modes, since the tables' products include what quantizing an input takes."""
    rest = parts(model, tokens, 0, "exact", FITS.get(gpu, H100), GPUS[gpu])
    products = sum(tables.product_seconds(n, k, tokens, mode) for n, k in model.products)
    return {
        "products": model.layers * products + tables.product_seconds(model.vocabulary, model.hidden, 1, "exact"),
        "attention": model.layers * tables.attention_seconds(model, tokens, 0),
        "rest": rest["rest"],
    }
