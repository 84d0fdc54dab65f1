"""A roofline of prefill: from a model's shape and a GPU's rates to the time until the first token.

A prompt is read in chunks. A chunk of ``m`` new tokens behind ``c`` cached ones costs

    Linear    2 * m * weights / rate(m), or reading the weights if that takes longer
    attention 4 * layers * heads * head_dim * m * (c + m / 2) / attention rate
    the rest  m * layers * hidden * bytes per element / bandwidth   (norms, activations, rotary, quantization)

and a request, once, what the host does while the GPU waits:

    fixed     scheduling, launches, sampling, the output layer (later chunks hide theirs behind the GPU)
    prompt    (new + cached tokens) * seconds per token   (taking the prompt in, hashing it for the prefix cache)

``rate(m)`` is what the matrix products reached alone (``docs/results/gpu-micro-h100.json``, ``…-h200.json``). The
attention rate, the element-wise bytes of each mode and the host's two times are fitted to ``FIT_CASES`` of
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

__all__ = ["FIT_CASES", "GPUS", "Fit", "Gpu", "ModelShape", "fit", "held_out_errors", "predict", "seconds"]

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

_BYTES = {"exact": 2.0, "fp8": 1.0, "nvfp4": 0.5625}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the roofline needs of a model; ``weights`` counts the Linear weights inside the blocks."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    weights: int

    @classmethod
    def of(cls, name: str) -> ModelShape:
        """A shape of :mod:`~mixquant_agents.bench.shapes`.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in SHAPES:
            raise ConfigError(f"no model shape {name!r}; choose one of {', '.join(SHAPES)}")
        c = SHAPES[name]
        attention = c["hidden_size"] * c["head_dim"] * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        mlp = 3 * c["hidden_size"] * c["intermediate_size"]
        layers = c["num_hidden_layers"]
        return cls(
            layers, c["hidden_size"], c["num_attention_heads"], c["head_dim"], layers * (attention + mlp)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted on one GPU.

    Attributes:
        gpu: its key in ``GPUS``.
        attention: FLOP/s.
        elementwise: bytes moved per token, layer and hidden element, by mode.
        fixed: seconds per request.
        per_token: seconds per token of the prompt, cached ones included.
    """

    gpu: str
    attention: float
    elementwise: Mapping[str, float]
    fixed: float
    per_token: float


H100 = Fit("h100", attention=603.9e12, elementwise={"exact": 80.73, "fp8": 79.96}, fixed=4.448e-3, per_token=3.546e-7)
H200 = Fit("h200", attention=641.4e12, elementwise={"exact": 63.75, "fp8": 79.11}, fixed=4.592e-3, per_token=3.81e-7)
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


def _chunks(tokens: int, cached: int) -> list[tuple[int, int]]:
    """``(new, before)`` of each chunk."""
    return [(min(CHUNK, tokens - at), cached + at) for at in range(0, tokens, CHUNK)]


def _features(
    shape: ModelShape, tokens: int, cached: int, mode: Mode, gpu: Gpu, measured_on: str
) -> tuple[float, float, float]:
    """Seconds in matrix products, attention FLOP, token-layer-hidden elements."""
    base = GPUS[measured_on]
    scale = {"exact": gpu.bf16 / base.bf16, "fp8": gpu.fp8 / base.fp8, "nvfp4": (gpu.fp4 or 0.0) / base.fp8}[mode]
    if not scale:
        raise ConfigError(f"{gpu.name} has no FP4 arithmetic; predict FP8 for it")
    products, attention, elements = 0.0, 0.0, 0.0
    for new, before in _chunks(tokens, cached):
        arithmetic = 2 * new * shape.weights / (_rate(mode, new, measured_on) * scale)
        reading = shape.weights * _BYTES[mode] / (0.85 * gpu.bandwidth)
        products += max(arithmetic, reading)
        attention += 4 * shape.layers * shape.heads * shape.head_dim * new * (before + new / 2)
        elements += new * shape.layers * shape.hidden
    return products, attention, elements


def seconds(shape: ModelShape, tokens: int, cached: int, mode: Mode, found: Fit, gpu: Gpu) -> float:
    """Time to read ``tokens`` new tokens behind ``cached`` ones."""
    base = GPUS[found.gpu]
    products, attention, elements = _features(shape, tokens, cached, mode, gpu, found.gpu)
    moved = found.elementwise["exact" if mode == "exact" else "fp8"] * elements
    host = found.fixed + found.per_token * (tokens + cached)
    return products + attention / (found.attention * gpu.bf16 / base.bf16) + moved / gpu.bandwidth + host


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
    ms: Mapping[str, Mapping[str, float]], shape: ModelShape, found: Fit, cases: Sequence[str] = FIT_CASES
) -> dict[str, dict[str, float]]:
    """Predicted over measured, less one, of every case of 512 and more new tokens that was not fitted."""
    errors: dict[str, dict[str, float]] = {}
    for name, row in ms.items():
        if name in cases or not name.startswith(("cold", "warm")) or _case(name)[0] < 512:
            continue
        tokens, cached = _case(name)
        errors[name] = {
            column: seconds(shape, tokens, cached, mode, found, GPUS[found.gpu]) * 1e3 / row[column] - 1
            for mode, column in _MEASURED
        }
    return errors


def predict(model: str, gpu: str) -> dict[str, Any]:
    """Cold prefill on ``gpu`` by prompt length, as the model has it, beside the paper's curve for an RTX 5090.

    Raises:
        ConfigError: no such GPU or model shape.
    """
    if gpu not in GPUS:
        raise ConfigError(f"no data sheet for GPU {gpu!r}; choose one of {', '.join(GPUS)}")
    shape, target, found = ModelShape.of(model), GPUS[gpu], FITS.get(gpu, H100)
    mode: Mode = "fp8" if target.fp4 is None else "nvfp4"
    rows = []
    for tokens in PAPER_5090:
        exact = seconds(shape, tokens, 0, "exact", found, target)
        quantized = seconds(shape, tokens, 0, mode, found, target)
        rows.append(
            {
                "tokens": tokens,
                "exact_ms": round(exact * 1e3, 1),
                f"{mode}_ms": round(quantized * 1e3, 1),
                "speedup": round(exact / quantized, 2),
                "paper_5090": PAPER_5090[tokens] if gpu == "rtx5090" and model == "qwen3-8b" else None,
            }
        )
    lines = [f"predicted, not measured: {model} on {target.name}, {mode} against exact"]
    for row in rows:
        paper = f", the paper {row['paper_5090']:.2f}x" if row["paper_5090"] else ""
        times = f"{row['exact_ms']:>8} ms  {row[f'{mode}_ms']:>8} ms"
        lines.append(f"{row['tokens']:>6} tokens  {times}  {row['speedup']:.2f}x{paper}")
    return {
        "kind": "predicted",
        "gpu": target.name,
        "model": model,
        "format": mode,
        "fitted_on": GPUS[found.gpu].name,
        "rows": rows,
        "table": "\n".join(lines),
    }
