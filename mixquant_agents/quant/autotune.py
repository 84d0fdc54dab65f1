"""What pays off on this device, measured once at start on the model's own layers.

Three chains over the Linear layers of the first blocks, each captured in a CUDA graph and replayed: exact; quantized
(quantization kernels included); quantized with a captured graph's exact rows. Their crossings with the exact chain are
the two row thresholds: a step of prefill rows alone is quantized above the first, a step that also holds exact rows
above the second. So a quantized step is never slower than an exact one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.layer import RoutedLayer
from mixquant_agents.quant.ops.linear import gpu_linear
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan, forced
from mixquant_agents.quant.thresholds import Thresholds, crossing
from mixquant_agents.quant.timing import replay_microseconds

__all__ = ["measure"]

GRID = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
LAYERS = 8
"""Two decoder blocks of four Linear: more weight bytes than any cache holds, for models where it matters."""


def _chains(layers: Sequence[RoutedLayer], m: int, index: torch.Tensor) -> dict[str, float]:
    weight = layers[0].weight
    widths = {layer.weight.shape[1] for layer in layers}
    rows = {k: torch.randn(m, k, device=weight.device, dtype=weight.dtype) for k in widths}

    def chain() -> None:
        for layer in layers:
            gpu_linear(rows[layer.weight.shape[1]], layer.weight, None)

    times = {}
    for name, step in (
        ("exact", EXACT),
        ("quantized", QUANTIZED),
        ("mixed", StepPlan(Mode.MIXED, m, exact_rows=index)),
    ):
        with forced(step):
            times[name] = replay_microseconds(chain)
    return times


def measure(layers: Sequence[RoutedLayer], exact_rows: int) -> Thresholds:
    """Thresholds of this device for a model made of such ``layers`` (those of its first blocks).

    Args:
        layers: on the GPU.
        exact_rows: how many exact rows a captured graph holds.
    """
    started = time.perf_counter()
    first = list(layers[:LAYERS])
    with torch.inference_mode():
        for twin in dict.fromkeys(layer.twin for layer in first):
            twin.tune([(layer.weight, layer.state) for layer in first if layer.twin is twin])
        index = torch.full((exact_rows,), -1, dtype=torch.int32, device=first[0].weight.device)
        times: dict[str, dict[int, float]] = {"exact": {}, "quantized": {}, "mixed": {}}
        for m in GRID:
            index[0] = m - 1
            for name, value in _chains(first, m, index).items():
                times[name][m] = round(value, 1)
    pure = crossing(times["exact"], times["quantized"])
    mixed = max(pure, crossing(times["exact"], times["mixed"]))
    return Thresholds(pure, mixed, times, time.perf_counter() - started)
