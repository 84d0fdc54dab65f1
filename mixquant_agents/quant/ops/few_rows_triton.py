"""Few rows times an 8-bit weight, unquantized rows: bound by reading the weight, once.

A draft step has as many rows as there are requests. Quantizing them saves nothing, and the kernels for large products
read a weight more slowly than this one. Codes become FP16, which holds every code of E4M3 and INT8; rows are clamped to
FP16's range; sums are FP32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels from their source: types there are its own, and annotations would be read as its own.
# ruff: noqa: N803 - Triton's own habit: compile-time constants in capitals
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

__all__ = ["MOST_ROWS", "TILINGS", "Tiling", "few_rows_product"]

MOST_ROWS = 32


class Tiling(NamedTuple):
    """Outputs of a program, inputs of a step of its loop, warps, and steps in flight."""

    outputs: int
    inputs: int
    warps: int
    stages: int


TILINGS = (Tiling(16, 512, 4, 4), Tiling(32, 256, 4, 4), Tiling(64, 256, 4, 4), Tiling(128, 128, 8, 4))


@triton.jit(do_not_specialize=["m"])
def _few_rows(
    x, codes, scales, bias, out, m, n, k, x_stride,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inner = tl.arange(0, INPUTS)
    valid = column < n
    weight = codes + column[:, None].to(tl.int64) * k + inner[None, :]
    source = x + row[None, :] * x_stride + inner[:, None]
    used = (row < m)[None, :]
    total = tl.zeros((OUTPUTS, ROWS), dtype=tl.float32)
    for begin in range(0, k, INPUTS):
        if EVEN:
            w = tl.load(weight + begin)
            v = tl.load(source + begin, mask=used, other=0.0).to(tl.float32)
        else:
            inside = inner < k - begin
            w = tl.load(weight + begin, mask=valid[:, None] & inside[None, :], other=0.0)
            v = tl.load(source + begin, mask=used & inside[:, None], other=0.0).to(tl.float32)
        v = tl.minimum(tl.maximum(v, -65504.0), 65504.0).to(tl.float16)
        total = tl.dot(w.to(tl.float16), v, total)
    total *= tl.load(scales + column, mask=valid, other=0.0)[:, None]
    if HAS_BIAS:
        total += tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[:, None]
    pointers = out + row[None, :] * n + column[:, None]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=used & valid[:, None])


def few_rows_product(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling
) -> torch.Tensor:
    """``x @ (codes * scales).T + bias``: ``[M, N]`` in the dtype of ``x``.

    Args:
        x: ``[M, K]``, rows contiguous, at most :data:`MOST_ROWS`.
        codes: ``[N, K]`` in 8 bits, contiguous.
        scales: float32 ``[N, 1]``.
        bias: ``[N]``.
        tiling: how the work is cut.
    """
    m, (n, k) = x.shape[0], codes.shape
    out = x.new_empty(m, n)
    _few_rows[(triton.cdiv(n, tiling.outputs),)](
        x, codes, scales, x if bias is None else bias, out, m, n, k, x.stride(0),
        HAS_BIAS=bias is not None, EVEN=n % tiling.outputs == 0 and k % tiling.inputs == 0,
        ROWS=16 if m <= 16 else 32, OUTPUTS=tiling.outputs, INPUTS=tiling.inputs,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out
