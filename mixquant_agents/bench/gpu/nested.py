"""Products with weights in twelve bits against cuBLAS with BF16 ones: one layer of an 8B model.

``python -m mixquant_agents.bench.gpu.nested OUT.json [ROWS…]``

Each of the layer's four products is timed as replays of a CUDA graph over several layers' weights, so that launches
cost nothing and weights come from memory. Every cut in ``quant/nested/tiling.py`` is tried; the fastest counts. Before
that its answers are held against float64, and rebuilt weights against the originals, bit for bit.
"""

# mypy: disable-error-code="misc"
# Lambdas whose defaults bind a loop's variables have no type that mypy infers.
# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from mixquant_agents.bench.gpu.timing import graph_microseconds
from mixquant_agents.files import write_whole
from mixquant_agents.quant.nested.kernels import NestedKernel, compile_tilings, nested_linear
from mixquant_agents.quant.nested.layout import NestedWeight, nest, rebuild
from mixquant_agents.quant.nested.tiling import CUTS, token_tiles

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}  # (N, K)
ROWS = (1, 8, 16, 32, 64, 128, 256)
LAYERS = 4
REPEATS = 30

Weights = list[tuple[torch.Tensor, NestedWeight]]


def layers(n: int, k: int) -> Weights:
    """Gaussian weights of several layers, plain and nested."""
    made = []
    for _ in range(LAYERS):
        weight = (torch.randn(n, k, device="cuda") * 0.02).bfloat16()
        nested = nest(weight)
        if not torch.equal(rebuild(nested).view(torch.int16), weight.view(torch.int16)):
            raise RuntimeError(f"a weight of {n} x {k} was not rebuilt bit for bit")
        made.append((weight, nested))
    return made


def relative_error(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    expected = x.double() @ weight.double().T
    return float((y.double() - expected).norm() / expected.norm())


def timed(work: Any) -> float:
    return graph_microseconds(work, REPEATS, LAYERS)


def one_product(rows: int, weights: Weights) -> dict[str, Any]:
    """Times in microseconds, the fastest cut, and both answers' errors against float64."""
    weight, nested = weights[0]
    n, k = weight.shape
    x = torch.randn(rows, k, device="cuda").bfloat16()
    cublas = timed(lambda: [linear(x, each) for each, _ in weights])
    cuts = [cut for cut in CUTS[token_tiles(rows)] if cut.fits(n, k)]
    kernels = {cut: [NestedKernel(each, cut) for _, each in weights] for cut in cuts}
    y = x.new_empty(rows, n)
    times = {cut: timed(lambda same=same: [kernel.into(y, x) for kernel in same]) for cut, same in kernels.items()}
    fastest = min(times, key=times.__getitem__)
    cublas = min(cublas, timed(lambda: [linear(x, each) for each, _ in weights]))
    return {
        "cublas_us": round(cublas, 1),
        "nested_us": round(times[fastest], 1),
        "cut": fastest.macros(),
        "error": relative_error(nested_linear(x, nested, fastest), x, weight),
        "cublas_error": relative_error(linear(x, weight), x, weight),
    }


def main(out: str, *rows: str) -> int:
    torch.manual_seed(0)
    counts = [int(count) for count in rows] or list(ROWS)
    compile_tilings(cut for tiles in {token_tiles(count) for count in counts} for cut in CUTS[tiles])
    weights = {name: layers(n, k) for name, (n, k) in SHAPES.items()}
    plain = sum(2 * weight.numel() for held in weights.values() for weight, _ in held)
    result: dict[str, Any] = {
        "command": " ".join(["python -m mixquant_agents.bench.gpu.nested", Path(out).name, *rows]),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "bytes_over_bf16": round(sum(each.nbytes for held in weights.values() for _, each in held) / plain, 4),
        "rebuilt_equal": True,
        "kernel_over_cublas": {},
        "products": {},
    }
    for count in counts:
        products = {name: one_product(count, held) for name, held in weights.items()}
        cublas, nested = (sum(p[key] for p in products.values()) for key in ("cublas_us", "nested_us"))
        result["kernel_over_cublas"][str(count)] = round(cublas / nested, 3)
        result["products"][str(count)] = products
        print(f"{count:3d} rows: cuBLAS {cublas:6.1f} us, nested {nested:6.1f} us, {cublas / nested:.3f}x")
        write_whole(Path(out), json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
