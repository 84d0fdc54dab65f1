"""What one decoder layer's Linear layers cost on this GPU, without vLLM.

``python -m mixquant_agents.bench.gpu.micro OUT.json``

Rates of the four matrix products of a Qwen3-8B layer (BF16, FP8 row-wise), of the quantization kernels alone and fused,
and of exact rows inside a quantized step, one after the other and on a second stream. Everything is timed as replays of
a CUDA graph over several layers' weights, so that launches cost nothing and weights come from memory, not from cache.
"""

# mypy: disable-error-code="misc"
# Lambdas whose defaults bind a loop's variables have no type that mypy infers.
# ruff: noqa: B023, T201 - a program; its closures run before the loop goes on
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mixquant_agents.bench.gpu.timing import graph_microseconds as timed
from mixquant_agents.files import write_whole
from mixquant_agents.quant.ops import rowwise_torch as reference
from mixquant_agents.quant.ops import rowwise_triton as kernels

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}  # (N, K)
ROWS = [16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384]
LAYERS = 4
FP8 = torch.float8_e4m3fn


def scaled(a: torch.Tensor, sa: torch.Tensor, w: torch.Tensor, sw: torch.Tensor, fast: bool = True) -> torch.Tensor:
    return torch._scaled_mm(a, w.t(), scale_a=sa, scale_b=sw.t(), out_dtype=torch.bfloat16, use_fast_accum=fast)


class Layer:
    def __init__(self) -> None:
        self.w = {n: torch.randn(s, device="cuda", dtype=torch.bfloat16) / s[1] ** 0.5 for n, s in SHAPES.items()}
        self.q = {n: kernels.quantize_rows(w, FP8) for n, w in self.w.items()}


def copy_rate() -> float:
    a = torch.empty(2**31, dtype=torch.bfloat16, device="cuda")
    b = torch.empty_like(a)
    return float(2 * a.numel() * a.element_size() / (timed(lambda: b.copy_(a)) * 1e-6))


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def gemms(layers: list[Layer], out: dict[str, Any]) -> None:
    for m in ROWS:
        row: dict[str, float] = {}
        for name, (_, k) in SHAPES.items():
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            xq, xs = kernels.quantize_rows(x, FP8)
            row[f"{name}_bf16"] = timed(lambda n=name, x=x: [x @ layer.w[n].t() for layer in layers], inner=LAYERS)
            for fast in (True, False):
                row[f"{name}_fp8{'' if fast else '_slowacc'}"] = timed(
                    lambda n=name, a=xq, s=xs, f=fast: [scaled(a, s, *layer.q[n], f) for layer in layers], inner=LAYERS
                )
        row["bf16"] = sum(v for key, v in row.items() if key.endswith("_bf16"))
        row["fp8"] = sum(v for key, v in row.items() if key.endswith("_fp8"))
        out[str(m)] = row
        print(f"M={m:6d} bf16 {row['bf16']:8.1f} us  fp8 {row['fp8']:8.1f} us  {row['bf16'] / row['fp8']:.2f}x  ",
              " ".join(f"{n} {row[n + '_bf16'] / row[n + '_fp8']:.2f}" for n in SHAPES),
              f"slowacc {sum(row[n + '_fp8_slowacc'] for n in SHAPES):8.1f}", flush=True)  # fmt: skip


def elementwise(out: dict[str, Any]) -> None:
    gamma = torch.rand(4096, device="cuda", dtype=torch.bfloat16)

    def norm(x: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return reference.norm_rows(x, r, gamma, 1e-6)

    compiled_norm = torch.compile(norm, dynamic=True)
    compiled_silu = torch.compile(reference.silu_rows, dynamic=True)
    for m in (512, 2048, 8192):
        sets = max(2, 16384 // m)
        x = [torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
        r = [torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
        g = [torch.randn(m, 24576, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
        wide = [torch.randn(m, 12288, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
        row = {
            "quant_4096": timed(lambda: [kernels.quantize_rows(a, FP8) for a in x], inner=sets),
            "quant_12288": timed(lambda: [kernels.quantize_rows(a, FP8) for a in wide], inner=sets),
            "norm_inductor": timed(lambda: [compiled_norm(a, b) for a, b in zip(x, r, strict=True)], inner=sets),
            "norm_ours": timed(lambda: [kernels.norm_rows(a, b, gamma, 1e-6) for a, b in zip(x, r, strict=True)],
                               inner=sets),
            "norm_quant": timed(
                lambda: [kernels.norm_quantize_rows(a, b, gamma, 1e-6, FP8) for a, b in zip(x, r, strict=True)],
                inner=sets),
            "silu_inductor": timed(lambda: [compiled_silu(a) for a in g], inner=sets),
            "silu_ours": timed(lambda: [kernels.silu_rows(a) for a in g], inner=sets),
            "silu_quant": timed(lambda: [kernels.silu_quantize_rows(a, FP8) for a in g], inner=sets),
        }  # fmt: skip
        for warps in (4, 8, 16):
            original, kernels._warps = kernels._warps, lambda _, w=warps: w
            row[f"silu_quant_w{warps}"] = timed(lambda: [kernels.silu_quantize_rows(a, FP8) for a in g], inner=sets)
            row[f"norm_quant_w{warps}"] = timed(
                lambda: [kernels.norm_quantize_rows(a, b, gamma, 1e-6, FP8) for a, b in zip(x, r, strict=True)],
                inner=sets)  # fmt: skip
            row[f"quant_4096_w{warps}"] = timed(lambda: [kernels.quantize_rows(a, FP8) for a in x], inner=sets)
            kernels._warps = original
        out[str(m)] = row
        print(f"M={m}", {key: round(v, 1) for key, v in row.items()}, flush=True)


def exact_rows(layers: list[Layer], out: dict[str, Any]) -> None:
    """A chain of all Linear layers with ``slot`` exact rows: without, in line, and on a second stream."""
    low, high = torch.cuda.Stream.priority_range()
    for m in (256, 512, 768, 1024, 2048, 4096, 8192):
        xs = {k: torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for k in (4096, 12288)}
        index = torch.full((64,), -1, dtype=torch.int32, device="cuda")
        index[0] = m - 1
        row: dict[str, float] = {}

        def chain(mode: str, slots: int = 0, stream: torch.cuda.Stream | None = None) -> None:
            for layer in layers:
                for name, (_, k) in SHAPES.items():
                    x, w = xs[k], layer.w[name]
                    if mode == "bf16":
                        _ = x @ w.t()
                        continue
                    if mode == "fp8":
                        scaled(*kernels.quantize_rows(x, FP8), *layer.q[name])
                        continue
                    slot = torch.empty((slots, k), dtype=torch.bfloat16, device="cuda")
                    codes, scales = kernels.quantize_rows(x, FP8, index[:slots], slot)
                    if stream is None:
                        y = scaled(codes, scales, *layer.q[name])
                        kernels.scatter_rows(slot @ w.t(), index[:slots], y)
                        continue
                    here = torch.cuda.current_stream()
                    stream.wait_stream(here)
                    with torch.cuda.stream(stream):
                        rows = slot @ w.t()
                    y = scaled(codes, scales, *layer.q[name])
                    here.wait_stream(stream)
                    kernels.scatter_rows(rows, index[:slots], y)

        row["bf16"] = timed(lambda: chain("bf16"), inner=LAYERS)
        row["fp8"] = timed(lambda: chain("fp8"), inner=LAYERS)
        for slots in (16, 64):
            row[f"serial_{slots}"] = timed(lambda s=slots: chain("slot", s), inner=LAYERS)
            for label, priority in (("low", low), ("high", high)):
                stream = torch.cuda.Stream(priority=priority)
                row[f"stream_{label}_{slots}"] = timed(
                    lambda s=slots, t=stream: chain("slot", s, t), inner=LAYERS)  # fmt: skip
        out[str(m)] = row
        print(f"M={m:5d}", {key: round(v, 1) for key, v in row.items()}, flush=True)


def main(path: str) -> None:
    torch.manual_seed(0)
    started = time.time()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    result["copy_bytes_per_s"] = copy_rate()
    layers = [Layer() for _ in range(LAYERS)]
    result["errors"] = {}
    for name, (_, k) in SHAPES.items():
        x = torch.randn(65, k, device="cuda", dtype=torch.bfloat16)
        codes, scales = kernels.quantize_rows(x, FP8)
        q, s = layers[0].q[name]
        want = reference.scaled_mm(codes, scales, q, s, torch.float64)
        result["errors"][name] = {
            "fast": error(scaled(codes, scales, q, s), want),
            "slowacc": error(scaled(codes, scales, q, s, fast=False), want),
            "against_float": error(scaled(codes, scales, q, s), x.double() @ layers[0].w[name].double().t()),
        }
    print(json.dumps(result), flush=True)
    for part, fill in (("gemm_us", lambda out: gemms(layers, out)), ("elementwise_us", elementwise),
                       ("exact_rows_us", lambda out: exact_rows(layers, out))):  # fmt: skip
        result[part] = {}
        fill(result[part])
        result["seconds"] = time.time() - started
        write_whole(Path(path), json.dumps(result, indent=1))
    print("seconds", round(time.time() - started, 1))


if __name__ == "__main__":
    main(sys.argv[1])
