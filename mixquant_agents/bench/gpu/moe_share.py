"""What share of a mixture of experts' time has no twin.

``python -m mixquant_agents.bench.gpu.moe_share OUT.json`` (an H100)

One layer of Qwen3-30B-A3B's shape with random weights, as replays of a CUDA graph over four layers: qkv and o in BF16
and in FP8 (quantization included), attention over the prompt itself, the router, and the experts: PyTorch's grouped
product for all of them at once, and SiLU. Putting rows in the order of their experts and adding up what these say is
left out, as are norms and rotary, so the experts' share is rather larger than shown.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from mixquant_agents.bench.gpu.timing import graph_microseconds
from mixquant_agents.files import write_whole
from mixquant_agents.quant.ops import rowwise_triton as kernels
from mixquant_agents.quant.ops.gemm import GemmTable, scaled_product

HIDDEN, INNER, EXPERTS, CHOSEN, HEADS, KV_HEADS, WIDTH = 2048, 768, 128, 8, 32, 4, 128
QUERY = HEADS * WIDTH
FP8 = torch.float8_e4m3fn
PRODUCTS = GemmTable("torch", "cutlass")
LAYERS = 4
ROWS = (512, 2048, 8192)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) / shape[-1] ** 0.5


class Layer:
    def __init__(self) -> None:
        self.linear = [random(QUERY + 2 * KV_HEADS * WIDTH, HIDDEN), random(HIDDEN, QUERY)]
        self.twins = [kernels.quantize_rows(weight, FP8) for weight in self.linear]
        self.router = random(EXPERTS, HIDDEN)
        self.up, self.down = random(EXPERTS, 2 * INNER, HIDDEN), random(EXPERTS, HIDDEN, INNER)


def parts(layers: list[Layer], m: int) -> dict[str, float]:
    x = torch.randn(m, HIDDEN, device="cuda", dtype=torch.bfloat16)
    rows = (x, torch.randn(m, QUERY, device="cuda", dtype=torch.bfloat16))
    q, k, v = (torch.randn(1, heads, m, WIDTH, device="cuda", dtype=x.dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))

    def exact() -> None:
        for layer in layers:
            for each, weight in zip(rows, layer.linear, strict=True):
                torch.nn.functional.linear(each, weight)

    def quantized() -> None:
        for layer in layers:
            for each, twin in zip(rows, layer.twins, strict=True):
                scaled_product(*kernels.quantize_rows(each, FP8), *twin, x.dtype, None, PRODUCTS)

    def route(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.nn.functional.linear(x, layer.router).softmax(-1, dtype=torch.float32)
        weights, ids = scores.topk(CHOSEN)
        return weights / weights.sum(-1, keepdim=True), ids

    expert_counts = [torch.bincount(route(layer)[1].flatten(), minlength=EXPERTS) for layer in layers]
    ends = [counts.cumsum(0).to(torch.int32) for counts in expert_counts]
    sorted_rows = torch.randn(m * CHOSEN, HIDDEN, device="cuda", dtype=x.dtype)

    def experts() -> None:
        for layer, end in zip(layers, ends, strict=True):
            inner = kernels.silu_rows(torch._grouped_mm(sorted_rows, layer.up.transpose(1, 2), offs=end))
            torch._grouped_mm(inner, layer.down.transpose(1, 2), offs=end)

    def attend() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    times = {
        "linear_bf16": graph_microseconds(exact, inner=LAYERS),
        "linear_fp8": graph_microseconds(quantized, inner=LAYERS),
        "attention": graph_microseconds(attend),
        "router": graph_microseconds(lambda: [route(layer) for layer in layers], inner=LAYERS),
        "experts": graph_microseconds(experts, inner=LAYERS),
    }
    whole = sum(value for name, value in times.items() if name != "linear_fp8")
    times["experts_share"] = times["experts"] / whole
    times["speedup_of_the_rest"] = whole / (whole - times["linear_bf16"] + times["linear_fp8"])
    return times


def main(path: str) -> None:
    torch.manual_seed(0)
    began = time.time()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "microseconds": {}}
    with torch.inference_mode():
        layers = [Layer() for _ in range(LAYERS)]
        for m in ROWS:
            result["microseconds"][str(m)] = parts(layers, m)
            print(m, {name: round(value, 3) for name, value in result["microseconds"][str(m)].items()}, flush=True)
    result["seconds"] = round(time.time() - began, 1)
    write_whole(Path(path), json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
