"""What pays off on this device, measured once at start on the model's own layers.

Three chains over the Linear layers of the first blocks, each captured in a CUDA graph and replayed: exact; quantized
(quantization kernels included); quantized with a full slot of exact rows. Their crossings with the exact chain are the
two row thresholds: a step of prefill rows alone is quantized above the first, a step that also holds exact rows above
the second. So a quantized step is never slower than an exact one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.ops import rowwise_triton as kernels
from mixquant_agents.quant.ops.gemm import CANDIDATES, CHOICE, Product
from mixquant_agents.quant.ops.linear import gpu_linear
from mixquant_agents.quant.step import EXACT, QUANTIZED, Step, forced
from mixquant_agents.quant.thresholds import Layer, Thresholds, crossing

__all__ = ["measure"]

GRID = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048)
GEMM_GRID = (16, 64, 128, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096, 8192)
LAYERS = 8
"""Two decoder blocks of four Linear: more weight bytes than any cache holds, for models where it matters."""


def _replayed(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median microseconds of a captured ``work``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return float(statistics.median(times))


def _products(run: Product, codes: torch.Tensor, scales: torch.Tensor, layers: list[Layer]) -> Callable[[], None]:
    def work() -> None:
        for layer in layers:
            run(codes, scales, layer.codes, layer.scales, layer.weight.dtype, None)

    return work


def _choose_products(layers: Sequence[Layer]) -> None:
    """Let each shape's fastest product be known to :data:`CHOICE`."""
    shapes: dict[tuple[int, int], list[Layer]] = {}
    for layer in layers:
        shapes.setdefault((layer.codes.shape[0], layer.codes.shape[1]), []).append(layer)
    for (n, k), same in shapes.items():
        dtype = same[0].codes.dtype
        names = ["cutlass"] if dtype == torch.int8 else list(CANDIDATES)
        winners = {}
        for m in GEMM_GRID:
            x = torch.randn(m, k, device=same[0].weight.device, dtype=same[0].weight.dtype)
            codes, scales = kernels.quantize_rows(x, dtype)
            times = {name: _replayed(_products(CANDIDATES[name], codes, scales, same)) for name in names}
            winners[m] = min(times, key=lambda name: times[name])
        CHOICE.learn(dtype, n, k, winners)


def _chains(layers: Sequence[Layer], m: int, index: torch.Tensor) -> dict[str, float]:
    weight = layers[0].weight
    widths = {layer.weight.shape[1] for layer in layers}
    rows = {k: torch.randn(m, k, device=weight.device, dtype=weight.dtype) for k in widths}

    def chain() -> None:
        for layer in layers:
            gpu_linear(rows[layer.weight.shape[1]], layer.weight, None)

    found = {}
    for name, step in (("exact", EXACT), ("quantized", QUANTIZED), ("mixed", Step(Mode.MIXED, index, m))):
        with forced(step):
            found[name] = _replayed(chain)
    return found


def measure(layers: Sequence[Layer], slot_rows: int) -> Thresholds:
    """Thresholds of this device for a model made of such ``layers`` (those of its first blocks)."""
    started = time.perf_counter()
    chosen = list(layers[:LAYERS])
    with torch.inference_mode():
        if chosen[0].codes.dtype != torch.uint8:  # NVFP4's product is vLLM's choice
            _choose_products(chosen)
        index = torch.full((slot_rows,), -1, dtype=torch.int32, device=chosen[0].weight.device)
        found: dict[str, dict[int, float]] = {"exact": {}, "quantized": {}, "mixed": {}}
        for m in GRID:
            index[0] = m - 1
            for name, value in _chains(chosen, m, index).items():
                found[name][m] = round(value, 1)
    pure = crossing(found["exact"], found["quantized"])
    mixed = max(pure, crossing(found["exact"], found["mixed"]))
    return Thresholds(pure, mixed, found, time.perf_counter() - started)
