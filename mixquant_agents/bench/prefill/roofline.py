"""A roofline of prefill: from a model's shape and a GPU's rates to the time until the first token.

A prompt is read in chunks. A chunk of ``m`` new tokens behind ``c`` cached ones costs

    Linear    2 * m * weights / rate(m) * tiling, or reading the weights if that takes longer
    attention 4 * layers * heads * head_dim * m * (c + m / 2) / attention rate
    the rest  m * layers * width * bytes per element / bandwidth    (norms, activations, rotary, quantization)

and a request, once, reading the output layer, and what the host does while the GPU waits:

    fixed     scheduling, launches, sampling (later chunks hide theirs behind the GPU)
    prompt    (new + cached tokens) * seconds per token   (taking the prompt in, hashing it for the prefix cache)

``rate(m)`` is what the matrix products of a Qwen3-8B layer reached alone (``docs/results/gpu-micro-h100.json``,
``…-h200.json``). ``tiling`` carries it over to other shapes: a product ``[m, k] x [k, n]`` takes ``waves * (k + ramp)
+ launch`` in units of one wave's step through ``k``, where a wave is one 128 x 128 tile of the output for each of 132
multiprocessors. The FP8 product has that tile size alone, so its waves are whole: with 1024 rows and 2560 outputs 160
tiles take the time of 264. cuBLAS has many for BF16 and hardly wastes any. ``ramp`` and ``launch`` are fitted to the
single products of the H100's file from 512 rows on (within 4.3 % root mean square for FP8, 3.0 % for BF16).
``width`` counts the elements that element-wise work moves: ``8 * hidden + 3 * intermediate + 2 * (q, k and v)``.

The attention rate, the element-wise bytes of each mode and the host's two times are fitted to ``FIT_CASES`` of
``docs/results/prefill-h100.json`` and ``…-h200.json``, the ends of what was measured; every other case of 512 and more
new tokens, and another model shape, measure how well the model predicts (below that the host decides). A GPU that was
not measured has the H100's figures scaled by its data sheet, so what is said of it is a *prediction*, resting on the
assumption that it reaches the same share of its peaks.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.errors import ConfigError

__all__ = [
    "FIT_CASES",
    "GPUS",
    "Fit",
    "Gpu",
    "Mode",
    "ModelShape",
    "chunks",
    "fit",
    "held_out_errors",
    "parts",
    "predict",
    "product_seconds",
    "seconds",
]

Mode = Literal["exact", "fp8", "nvfp4"]
CHUNK = 8192
FIT_CASES = ("cold_512", "cold_2048", "cold_8192", "cold_32000", "warm_8192_512")


@dataclass(frozen=True, slots=True)
class Gpu:
    """Data-sheet peaks: dense, float32 accumulation, FLOP/s; memory bandwidth in bytes/s."""

    name: str
    bf16: float
    fp8: float
    fp4: float | None
    bandwidth: float


GPUS = {
    "h200": Gpu("NVIDIA H200", 989e12, 1979e12, None, 4.8e12),
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 1979e12, None, 3.35e12),
    "rtx5090": Gpu("NVIDIA RTX 5090", 209.5e12, 419e12, 1676e12, 1.79e12),
    "rtx-pro-6000": Gpu("NVIDIA RTX PRO 6000 Blackwell", 503.8e12, 1007.6e12, 2015.2e12, 1.792e12),
    "b200": Gpu("NVIDIA B200", 2250e12, 4500e12, 9000e12, 8.0e12),
}

PAPER_5090 = {2048: 3.51, 4096: 3.20, 8192: 2.80, 16384: 2.42, 32000: 1.96}
"""Mix-Quant (arXiv 2605.20315): prefill speed-up of NVFP4 over BF16, Qwen3-8B on an RTX 5090."""

_ROWS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
_RATES = {
    "h100": {
        "exact": (39, 154, 308, 435, 549, 647, 754, 779, 788, 788, 777, 755, 724, 660),
        "fp8": (55, 225, 447, 627, 865, 1043, 1299, 1263, 1425, 1436, 1427, 1470, 1449, 1340),
    },
    "h200": {
        "exact": (55, 216, 410, 486, 643, 699, 758, 782, 790, 794, 762, 722, 680, 650),
        "fp8": (64, 256, 517, 637, 938, 1100, 1319, 1284, 1460, 1435, 1441, 1394, 1377, 1346),
    },
}
"""TFLOP/s of all matrix products of a Qwen3-8B layer together, by GPU and number of rows."""

_MEASURED: tuple[tuple[Mode, str], ...] = (("exact", "exact"), ("fp8", "mixquant-fp8"))
"""Modes and their columns of the result file."""

TILE, MULTIPROCESSORS = 128, 132
_RAMP = {"exact": 58.0, "fp8": 243.0}
_LAUNCH = {"exact": 521.0, "fp8": 1232.0}
"""In steps through ``k``; see the module."""

_BYTES = {"exact": 2.0, "fp8": 1.0, "nvfp4": 0.5625}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the roofline needs of a model; ``products`` are the ``(outputs, inputs)`` of a block's Linear layers."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    vocabulary: int
    products: tuple[tuple[int, int], ...]

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        (qkv, _), (_, query), *_ = self.products
        return (qkv - query) // 2 // self.head_dim

    @property
    def weights(self) -> int:
        """Linear weights inside the blocks."""
        return self.layers * sum(n * k for n, k in self.products)

    @property
    def width(self) -> int:
        """Elements of a token that element-wise work moves in a block."""
        (qkv, _), _, (gate_up, _), _ = self.products
        return 8 * self.hidden + 3 * gate_up // 2 + 2 * qkv

    @classmethod
    def of(cls, name: str) -> ModelShape:
        """A shape of :mod:`~mixquant_agents.bench.shapes`.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in SHAPES:
            raise ConfigError(f"no model shape {name!r}; choose one of {', '.join(SHAPES)}")
        c = SHAPES[name]
        hidden, inner, width = c["hidden_size"], c["intermediate_size"], c["head_dim"]
        query, cached = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
        products = ((query + 2 * cached, hidden), (hidden, query), (2 * inner, hidden), (hidden, inner))
        return cls(c["num_hidden_layers"], hidden, c["num_attention_heads"], width, c["vocab_size"], products)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted on one GPU.

    Attributes:
        gpu: its key in ``GPUS``.
        attention: FLOP/s.
        elementwise: bytes moved per token, layer and element of its width, by mode.
        fixed: seconds per request.
        per_token: seconds per token of the prompt, cached ones included.
    """

    gpu: str
    attention: float
    elementwise: Mapping[str, float]
    fixed: float
    per_token: float


H100 = Fit("h100", attention=603.9e12, elementwise={"exact": 4.037, "fp8": 3.998}, fixed=4.011e-3, per_token=3.546e-7)
H200 = Fit("h200", attention=641.4e12, elementwise={"exact": 3.187, "fp8": 3.956}, fixed=4.287e-3, per_token=3.81e-7)
FITS = {"h100": H100, "h200": H200}
"""``fit`` of ``docs/results/prefill-*.json``; a test fits them again."""


def _rate(mode: Mode, rows: float, measured_on: str) -> float:
    """FLOP/s of the matrix products, interpolated in the logarithm of rows."""
    rates = _RATES[measured_on]["exact" if mode == "exact" else "fp8"]
    if rows <= _ROWS[0]:
        return rates[0] * 1e12 * rows / _ROWS[0]
    if rows >= _ROWS[-1]:
        return rates[-1] * 1e12
    right = bisect.bisect_right(_ROWS, rows)
    a, b = _ROWS[right - 1], _ROWS[right]
    share = math.log(rows / a) / math.log(b / a)
    return (rates[right - 1] * (1 - share) + rates[right] * share) * 1e12


def _steps(shape: ModelShape, rows: int, kind: Literal["exact", "fp8"]) -> float:
    """What a block's matrix products take, in steps of a wave through ``k``."""
    total = 0.0
    for n, k in shape.products:
        if kind == "exact":
            waves = rows * n / TILE**2 / MULTIPROCESSORS
        else:
            waves = math.ceil(math.ceil(rows / TILE) * math.ceil(n / TILE) / MULTIPROCESSORS)
        total += waves * (k + _RAMP[kind]) + _LAUNCH[kind]
    return total


def _tiling(shape: ModelShape, rows: int, mode: Mode) -> float:
    """Time for an operation in products of this shape, over that in those the rate was measured on."""
    kind: Literal["exact", "fp8"] = "exact" if mode == "exact" else "fp8"
    here, reference = (_steps(s, rows, kind) * s.layers / s.weights for s in (shape, ModelShape.of("qwen3-8b")))
    return here / reference


def chunks(tokens: int, cached: int) -> list[tuple[int, int]]:
    """``(new, before)`` of each chunk."""
    return [(min(CHUNK, tokens - at), cached + at) for at in range(0, tokens, CHUNK)]


def _features(
    shape: ModelShape, tokens: int, cached: int, mode: Mode, gpu: Gpu, measured_on: str
) -> tuple[float, float, float]:
    """Seconds in matrix products, attention FLOP, elements that element-wise work moves."""
    base = GPUS[measured_on]
    scale = {"exact": gpu.bf16 / base.bf16, "fp8": gpu.fp8 / base.fp8, "nvfp4": (gpu.fp4 or 0.0) / base.fp8}[mode]
    if not scale:
        raise ConfigError(f"{gpu.name} has no FP4 arithmetic; predict FP8 for it")
    attention, elements = 0.0, 0.0
    products = 2 * shape.vocabulary * shape.hidden / (0.85 * gpu.bandwidth)  # the output layer is read once
    for new, before in chunks(tokens, cached):
        arithmetic = 2 * new * shape.weights / (_rate(mode, new, measured_on) * scale) * _tiling(shape, new, mode)
        reading = shape.weights * _BYTES[mode] / (0.85 * gpu.bandwidth)
        products += max(arithmetic, reading)
        attention += 4 * shape.layers * shape.heads * shape.head_dim * new * (before + new / 2)
        elements += new * shape.layers * shape.width
    return products, attention, elements


def seconds(shape: ModelShape, tokens: int, cached: int, mode: Mode, fitted: Fit, gpu: Gpu) -> float:
    """Time to read ``tokens`` new tokens behind ``cached`` ones."""
    return sum(parts(shape, tokens, cached, mode, fitted, gpu).values())


def parts(shape: ModelShape, tokens: int, cached: int, mode: Mode, fitted: Fit, gpu: Gpu) -> dict[str, float]:
    """:func:`seconds` by part: matrix ``products`` (the output layer's reading included), ``attention``, and the
    ``rest``: element-wise work and the host."""
    base = GPUS[fitted.gpu]
    products, attention, elements = _features(shape, tokens, cached, mode, gpu, fitted.gpu)
    moved = fitted.elementwise["exact" if mode == "exact" else "fp8"] * elements
    host = fitted.fixed + fitted.per_token * (tokens + cached)
    return {
        "products": products,
        "attention": attention / (fitted.attention * gpu.bf16 / base.bf16),
        "rest": moved / gpu.bandwidth + host,
    }


def product_seconds(n: int, k: int, rows: int, mode: Mode, fitted: Fit, gpu: Gpu) -> float:
    """Time of one product ``[rows, k] x [k, n]`` in chunks, at the rate of all of a layer's together: what a part of it
    takes in another format. The tiling of single products is left out."""
    base = GPUS[fitted.gpu]
    scale = {"exact": gpu.bf16 / base.bf16, "fp8": gpu.fp8 / base.fp8, "nvfp4": (gpu.fp4 or 0.0) / base.fp8}[mode]
    return sum(2 * new * n * k / (_rate(mode, new, fitted.gpu) * scale) for new, _ in chunks(rows, 0))


def _case(name: str) -> tuple[int, int]:
    """``(tokens, cached)`` of ``cold_N`` or ``warm_C_N``."""
    kind, *numbers = name.split("_")
    return (int(numbers[0]), 0) if kind == "cold" else (int(numbers[1]), int(numbers[0]))


def fit(
    ms: Mapping[str, Mapping[str, float]], shape: ModelShape, measured_on: str, cases: Sequence[str] = FIT_CASES
) -> Fit:
    """Least squares of relative errors over ``cases`` of a result file's ``ms``, both modes together."""
    import numpy as np

    gpu = GPUS[measured_on]
    rows, rest = [], []
    for name in cases:
        tokens, cached = _case(name)
        for mode, column in _MEASURED:
            products, attention, elements = _features(shape, tokens, cached, mode, gpu, measured_on)
            measured = ms[name][column] / 1e3
            moved = elements / gpu.bandwidth
            row = [attention, moved if mode == "exact" else 0.0, moved if mode == "fp8" else 0.0, 1.0, tokens + cached]
            rows.append([value / measured for value in row])
            rest.append((measured - products) / measured)
    matrix = np.asarray(rows)
    scale = matrix.max(axis=0)
    solution = np.linalg.lstsq(matrix / scale, np.asarray(rest), rcond=None)[0] / scale
    attention, exact, fp8, fixed, per_token = map(float, solution)
    return Fit(measured_on, 1 / attention, {"exact": exact, "fp8": fp8}, fixed, per_token)


def held_out_errors(
    ms: Mapping[str, Mapping[str, float]], shape: ModelShape, fitted: Fit, cases: Sequence[str] = FIT_CASES
) -> dict[str, dict[str, float]]:
    """Predicted over measured, less one, of every case of 512 and more new tokens that was not fitted."""
    errors: dict[str, dict[str, float]] = {}
    for name, row in ms.items():
        if name in cases or not name.startswith(("cold", "warm")) or _case(name)[0] < 512:
            continue
        tokens, cached = _case(name)
        errors[name] = {
            column: seconds(shape, tokens, cached, mode, fitted, GPUS[fitted.gpu]) * 1e3 / row[column] - 1
            for mode, column in _MEASURED
        }
    return errors


def predict(model: str, gpu: str) -> dict[str, Any]:
    """Cold prefill on ``gpu`` by prompt length, as the model has it, beside the paper's curve for an RTX 5090.

    Raises:
        ConfigError: no such GPU or model shape.
    """
    gpu = gpu.strip().lower().replace(" ", "")
    if gpu not in GPUS:
        raise ConfigError(f"no data sheet for GPU {gpu!r}; choose one of {', '.join(GPUS)}")
    shape, target, fitted = ModelShape.of(model), GPUS[gpu], FITS.get(gpu, H100)
    mode: Mode = "fp8" if target.fp4 is None else "nvfp4"
    rows = []
    for tokens in PAPER_5090:
        exact = seconds(shape, tokens, 0, "exact", fitted, target)
        quantized = seconds(shape, tokens, 0, mode, fitted, target)
        rows.append(
            {
                "tokens": tokens,
                "exact_ms": round(exact * 1e3, 1),
                f"{mode}_ms": round(quantized * 1e3, 1),
                "speedup": round(exact / quantized, 2),
                "paper_5090": PAPER_5090[tokens] if gpu == "rtx5090" and model == "qwen3-8b" else None,
            }
        )
    lines = [
        f"predicted, not measured: {model} on {target.name}, {mode} against exact",
        f"{'cold prompt':>13}  {'exact':>11}  {'mixquant-' + mode:>14}  speed-up",
    ]
    for row in rows:
        paper = f", the paper {row['paper_5090']:.2f}x" if row["paper_5090"] else ""
        times = f"{row['exact_ms']:>8} ms  {row[f'{mode}_ms']:>11} ms"
        lines.append(f"{row['tokens']:>6} tokens  {times}  {row['speedup']:.2f}x{paper}")
    return {
        "kind": "predicted",
        "gpu": target.name,
        "model": model,
        "format": mode,
        "fitted_on": GPUS[fitted.gpu].name,
        "rows": rows,
        "table": "\n".join(lines),
    }
