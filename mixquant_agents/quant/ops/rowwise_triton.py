"""Triton kernels: per-token quantization, alone or fused into the RMSNorm or SiLU-mul that precedes a Linear.

All three share one shape of work: one program per row, the whole row in registers, one pass over device memory.

- ``quantize_rows``       x ``[M, K]``                       -> codes ``[M, K]``, scales ``[M, 1]`` float32
- ``norm_quantize_rows``  x (+ residual), gamma              -> codes, scales, residual sum ``[M, K]``
- ``silu_quantize_rows``  gate and up side by side ``[M, 2K]`` -> codes, scales

A step that keeps some rows exact needs those rows unquantized too. So each kernel takes an optional *slot*: an index
buffer ``[S]`` int32 on the device and a buffer ``[S, K]`` in the input's dtype. ``S`` further programs compute the
unquantized rows named by the index buffer (negative: unused) straight into the slot: no one writes all rows in 16 bits
to gather a few. The index buffer lies at a fixed address, so a captured CUDA graph replays with other rows.

With ``ORDERED`` the codes of each group of 64 columns lie in the order of nested weights: they are put there in
registers, so that a row is still written in one piece. The slot keeps the columns' own order.

Codes are FP8 E4M3 (``scale = amax / 448``) or INT8 (``scale = amax / 127``, half to even); a row of zeros gets a tiny
scale and zero codes. Values are rounded to the input's dtype before quantization, so a fused kernel and its two-step
form agree bit for bit wherever their sums do.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels from their source: types there are its own, and annotations would be read as its own.
# ruff: noqa: N803 - Triton's own habit: sizes and compile-time constants in capitals
from __future__ import annotations

import torch
import triton
import triton.language as tl

from mixquant_agents.quant.numerics import rowwise

__all__ = [
    "activated",
    "norm_quantize_rows",
    "norm_rows",
    "quantize_rows",
    "scatter_rows",
    "silu_quantize_rows",
    "silu_rows",
]

SILU_BLOCK = 1024
TINY: tl.constexpr = tl.constexpr(rowwise.TINY)  # smallest row maximum: a zero row must not divide by zero


@triton.jit
def _store_codes(y, codes, scales, row, cols, mask, K, LIMIT: tl.constexpr, IS_INT: tl.constexpr,
                 ORDERED: tl.constexpr):  # fmt: skip
    amax = tl.maximum(tl.max(tl.abs(y), axis=0), TINY)
    # tl.div_rn: IEEE division, so that the plain reference agrees bit for bit
    tl.store(scales + row, tl.div_rn(amax, LIMIT))
    q = y * tl.div_rn(LIMIT, amax)
    q = tl.minimum(tl.maximum(q, -LIMIT), LIMIT)
    if ORDERED:
        # 64 inputs as step, half of 16, thread, odd; stored as thread, step, odd, half (nested/layout.py: ORDER)
        groups: tl.constexpr = y.shape[0] // 64
        parts = tl.permute(tl.reshape(q.to(tl.float8e4nv), (groups, 4, 2, 4, 2)), (0, 3, 1, 4, 2))
        tl.store(codes + row * K + cols, tl.reshape(parts, (groups * 64,)), mask=mask)
    elif IS_INT:
        # adding and taking away 1.5 * 2**23 rounds half to even without a libdevice call
        q = (q + 12582912.0) - 12582912.0
        tl.store(codes + row * K + cols, q.to(tl.int8), mask=mask)
    else:
        tl.store(codes + row * K + cols, q.to(tl.float8e4nv), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _quantize(x, x_stride, codes, scales, index, slot, M, K, LIMIT: tl.constexpr, IS_INT: tl.constexpr,
              HAS_SLOT: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < K
    if pid < M:
        row = pid.to(tl.int64)
        y = tl.load(x + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
        _store_codes(y, codes, scales, row, cols, mask, K, LIMIT, IS_INT, ORDERED)
    elif HAS_SLOT:
        row = tl.load(index + (pid - M)).to(tl.int64)
        if row >= 0:
            y = tl.load(x + row * x_stride + cols, mask=mask, other=0.0)
            tl.store(slot + (pid - M) * K + cols, y, mask=mask)


@triton.jit
def _norm_row(x, residual, gamma, row, x_stride, K, eps, cols, mask, HAS_RESIDUAL: tl.constexpr):
    v = tl.load(x + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        v += tl.load(residual + row * K + cols, mask=mask, other=0.0).to(tl.float32)
    variance = tl.sum(v * v, axis=0) / K
    g = tl.load(gamma + cols, mask=mask, other=0.0).to(tl.float32)
    return v, v * tl.rsqrt(variance + eps) * g


@triton.jit(do_not_specialize=["M"])
def _norm_quantize(x, x_stride, residual, residual_out, gamma, eps, codes, scales, channel_scale, index, slot, M, K,
                   HAS_RESIDUAL: tl.constexpr, QUANTIZE: tl.constexpr, LIMIT: tl.constexpr, IS_INT: tl.constexpr,
                   HAS_SLOT: tl.constexpr, ORDERED: tl.constexpr, SCALED: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """``QUANTIZE=False``: ``codes`` takes the normalized rows themselves, in x's dtype; ``SCALED``: channels times
    ``channel_scale``, powers of two, so that nothing is rounded again."""
    pid = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < K
    if pid < M:
        row = pid.to(tl.int64)
        v, y = _norm_row(x, residual, gamma, row, x_stride, K, eps, cols, mask, HAS_RESIDUAL)
        if HAS_RESIDUAL:
            tl.store(residual_out + row * K + cols, v.to(x.dtype.element_ty), mask=mask)
        if QUANTIZE:
            y = y.to(x.dtype.element_ty).to(tl.float32)
            _store_codes(y, codes, scales, row, cols, mask, K, LIMIT, IS_INT, ORDERED)
        else:
            if SCALED:
                y = y.to(x.dtype.element_ty).to(tl.float32) * tl.load(channel_scale + cols, mask=mask, other=0.0)
            tl.store(codes + row * K + cols, y.to(x.dtype.element_ty), mask=mask)
    elif HAS_SLOT:
        row = tl.load(index + (pid - M)).to(tl.int64)
        if row >= 0:
            _, y = _norm_row(x, residual, gamma, row, x_stride, K, eps, cols, mask, HAS_RESIDUAL)
            tl.store(slot + (pid - M) * K + cols, y.to(x.dtype.element_ty), mask=mask)


@triton.jit
def activated(gate, GELU: tl.constexpr):
    """The activation of a gate. Called by other kernels."""
    # gate * sigmoid(z): SiLU with z = gate, and GELU's tanh form, since 0.5 * (1 + tanh(z / 2)) is sigmoid(z)
    z = gate
    if GELU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + tl.exp(-z))


@triton.jit
def _silu_row(x, row, x_stride, K, cols, mask, GELU: tl.constexpr):
    gate = tl.load(x + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + K + cols, mask=mask, other=0.0).to(tl.float32)
    return activated(gate, GELU) * up


@triton.jit(do_not_specialize=["M"])
def _silu_quantize(x, x_stride, codes, scales, index, slot, M, K, LIMIT: tl.constexpr, IS_INT: tl.constexpr,
                   HAS_SLOT: tl.constexpr, ORDERED: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < K
    if pid < M:
        row = pid.to(tl.int64)
        y = _silu_row(x, row, x_stride, K, cols, mask, GELU).to(x.dtype.element_ty).to(tl.float32)
        _store_codes(y, codes, scales, row, cols, mask, K, LIMIT, IS_INT, ORDERED)
    elif HAS_SLOT:
        row = tl.load(index + (pid - M)).to(tl.int64)
        if row >= 0:
            y = _silu_row(x, row, x_stride, K, cols, mask, GELU)
            tl.store(slot + (pid - M) * K + cols, y.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _silu(x, x_stride, out, channel_scale, index, slot, M, K, HAS_SLOT: tl.constexpr, SCALED: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < K
    if pid < M:
        row = pid.to(tl.int64)
        y = _silu_row(x, row, x_stride, K, cols, mask, False).to(x.dtype.element_ty)
        if SCALED:
            y = (y.to(tl.float32) * tl.load(channel_scale + cols, mask=mask, other=0.0)).to(x.dtype.element_ty)
        tl.store(out + row * K + cols, y, mask=mask)
    elif HAS_SLOT:
        row = tl.load(index + (pid - M)).to(tl.int64)
        if row >= 0:
            y = _silu_row(x, row, x_stride, K, cols, mask, False)
            tl.store(slot + (pid - M) * K + cols, y.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _scatter(rows, index, out, N, BLOCK: tl.constexpr):
    source = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    row = tl.load(index + source).to(tl.int64)
    if row >= 0:
        value = tl.load(rows + source * N + cols, mask=mask)
        tl.store(out + row * N + cols, value, mask=mask)


def _warps(block: int) -> int:
    """16 to 32 values per thread keep a row in registers with enough loads in flight."""
    return min(16, max(1, block // 512))


def _format(dtype: torch.dtype) -> tuple[float, bool]:
    """Largest code and whether codes are integers."""
    if dtype not in rowwise.LIMITS:
        known = " or ".join(map(str, rowwise.LIMITS))
        raise TypeError(f"no per-token quantization to {dtype}; use {known}")
    return rowwise.LIMITS[dtype], not dtype.is_floating_point


def _outputs(x: torch.Tensor, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    m = x.shape[0]
    return (
        torch.empty((m, k), dtype=dtype, device=x.device),
        torch.empty((m, 1), dtype=torch.float32, device=x.device),
    )


def quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token codes ``[M, K]`` and scales ``[M, 1]`` of ``x`` ``[M, K]`` (last dimension contiguous)."""
    m, k = x.shape
    codes, scales = _outputs(x, k, dtype)
    limit, is_int = _format(dtype)
    block = triton.next_power_of_2(k)
    extra = 0 if index is None else index.shape[0]
    if m + extra:
        _quantize[(m + extra,)](
            x, x.stride(0), codes, scales, index, slot, m, k, LIMIT=limit, IS_INT=is_int, HAS_SLOT=extra > 0,
            ORDERED=ordered, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return codes, scales


def norm_quantize_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``rms_norm(x + residual) * gamma`` quantized per token, and the sum ``x + residual`` (None without residual)."""
    m, k = x.shape
    codes, scales = _outputs(x, k, dtype)
    limit, is_int = _format(dtype)
    total = None if residual is None else torch.empty_like(residual)
    block = triton.next_power_of_2(k)
    extra = 0 if index is None else index.shape[0]
    if m + extra:
        _norm_quantize[(m + extra,)](
            x, x.stride(0), residual, total, gamma, eps, codes, scales, None, index, slot, m, k,
            HAS_RESIDUAL=residual is not None, QUANTIZE=True, LIMIT=limit, IS_INT=is_int, HAS_SLOT=extra > 0,
            ORDERED=ordered, SCALED=False, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return codes, scales, total


def norm_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    eps: float,
    channel_scale: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``rms_norm(x + residual) * gamma`` in x's dtype, and the sum: the exact form of :func:`norm_quantize_rows`.

    Channels of the rows, not of those in ``slot``, are multiplied by ``channel_scale``, float32 ``[K]``.
    """
    m, k = x.shape
    out = torch.empty((m, k), dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(residual)
    block = triton.next_power_of_2(k)
    extra = 0 if index is None else index.shape[0]
    if m + extra:
        _norm_quantize[(m + extra,)](
            x, x.stride(0), residual, total, gamma, eps, out, None, channel_scale, index, slot, m, k,
            HAS_RESIDUAL=residual is not None, QUANTIZE=False, LIMIT=1.0, IS_INT=False, HAS_SLOT=extra > 0,
            ORDERED=False, SCALED=channel_scale is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return out, total


def silu_quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
    gelu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``silu(x[:, :K]) * x[:, K:]`` quantized per token; ``x`` is ``[M, 2K]``. ``gelu``: GELU's tanh form instead."""
    m, k = x.shape[0], x.shape[1] // 2
    codes, scales = _outputs(x, k, dtype)
    limit, is_int = _format(dtype)
    block = triton.next_power_of_2(k)
    extra = 0 if index is None else index.shape[0]
    if m + extra:
        _silu_quantize[(m + extra,)](
            x, x.stride(0), codes, scales, index, slot, m, k, LIMIT=limit, IS_INT=is_int, HAS_SLOT=extra > 0,
            ORDERED=ordered, GELU=gelu, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return codes, scales


def silu_rows(
    x: torch.Tensor,
    channel_scale: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
) -> torch.Tensor:
    """``silu(x[:, :K]) * x[:, K:]`` in x's dtype: the exact form of :func:`silu_quantize_rows`; scaled as
    :func:`norm_rows` are.

    No row needs a maximum here, so a row is shared out among programs: with few rows that fills the chip better.
    """
    m, k = x.shape[0], x.shape[1] // 2
    out = torch.empty((m, k), dtype=x.dtype, device=x.device)
    block = min(SILU_BLOCK, triton.next_power_of_2(k))
    extra = 0 if index is None else index.shape[0]
    if m + extra:
        _silu[(m + extra, triton.cdiv(k, block))](
            x, x.stride(0), out, channel_scale, index, slot, m, k, HAS_SLOT=extra > 0, SCALED=channel_scale is not None,
            BLOCK=block,
        )  # fmt: skip
    return out


def scatter_rows(rows: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """``out[index[i]] = rows[i]`` for every ``index[i] >= 0``; ``rows`` ``[S, N]``, ``out`` ``[M, N]`` contiguous."""
    s, n = rows.shape
    block = min(1024, triton.next_power_of_2(n))
    _scatter[(s, triton.cdiv(n, block))](rows, index, out, n, BLOCK=block)
