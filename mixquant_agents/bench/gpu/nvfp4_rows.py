"""What it takes to quantize rows to NVFP4 on this GPU, with block scales plain and 4/6.

``python -m mixquant_agents.bench.gpu.nvfp4_rows OUT.json``

Each kernel is timed as replays of a CUDA graph over so many different rows that they come from memory, not from cache.
Beside it the bound of memory, by the rate of a large copy: every value read once, its codes and scales written once.
And the kernel that quantizes the same rows to FP8 per token. No product in FP4 runs, so no Blackwell GPU is needed.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from mixquant_agents.bench.gpu.timing import graph_microseconds
from mixquant_agents.files import write_whole
from mixquant_agents.quant.ops import nvfp4_torch, nvfp4_triton, rowwise_triton

ROWS = (512, 2048, 8192)
COLUMNS = (4096, 12288)
CUTS = ((32, 2), (32, 4), (32, 8), (64, 8), (128, 8), (128, 16))
"""Rows and warps of one program."""
BYTES = 2 + 1 / 2 + 1 / 16
"""Of one value: read in 16 bits, its code and a sixteenth of a block scale written."""


def copy_bytes_per_microsecond() -> float:
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return float(2 * source.nbytes / graph_microseconds(lambda: target.copy_(source)))


def check(x: torch.Tensor, encode: torch.Tensor) -> None:
    """A wrong kernel's time says nothing.

    Raises:
        RuntimeError: a byte differs from the reference.
    """
    for four_over_six in (False, True):
        made = nvfp4_triton.quantize_rows(x, encode, four_over_six)
        wanted = nvfp4_torch.quantize_rows(x, encode, four_over_six)
        if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(made, wanted, strict=True)):
            raise RuntimeError(f"rows differ from the reference (four_over_six={four_over_six})")


def timed(m: int, k: int, rate: float) -> dict[str, Any]:
    """Microseconds, and over the bound of memory and over the FP8 kernel."""
    sets = max(2, 2**27 // (m * k))
    rows = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    encode = torch.ones((), device="cuda")
    check(rows[0], encode)

    def nvfp4(four_over_six: bool) -> float:
        return graph_microseconds(
            lambda: [nvfp4_triton.quantize_rows(x, encode, four_over_six) for x in rows], inner=sets
        )

    times = {
        "bound": m * k * BYTES / rate,
        "fp8": graph_microseconds(
            lambda: [rowwise_triton.quantize_rows(x, torch.float8_e4m3fn) for x in rows], inner=sets
        ),
        "plain": nvfp4(False),
        "4/6": nvfp4(True),
    }
    chosen = nvfp4_triton.ROWS, nvfp4_triton.WARPS
    for cut in CUTS:
        nvfp4_triton.ROWS, nvfp4_triton.WARPS = cut
        times |= {f"plain, {cut[0]} rows, {cut[1]} warps": nvfp4(False)}
        times |= {f"4/6, {cut[0]} rows, {cut[1]} warps": nvfp4(True)}
    nvfp4_triton.ROWS, nvfp4_triton.WARPS = chosen
    over = {
        f"{name} over {base}": times[name] / times[base]
        for name in ("plain", "4/6", "fp8")
        for base in ("bound", "fp8")
    }
    return {"rows": m, "columns": k, "microseconds": times, "ratios": over}


def main(path: str) -> None:
    torch.manual_seed(0)
    rate = copy_bytes_per_microsecond()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_s": rate * 1e6,
        "sizes": [],
    }
    for m in ROWS:
        for k in COLUMNS:
            result["sizes"].append(timed(m, k, rate))
            print(json.dumps(result["sizes"][-1]), flush=True)
            write_whole(Path(path), json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
