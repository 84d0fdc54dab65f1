"""Triton kernel: rows quantized to NVFP4 as vLLM's products read them, block scales plain or 4/6.

Bit for bit what :mod:`mixquant_agents.quant.ops.nvfp4_torch` computes.

Block scales lie in tiles of 128 rows and 4 blocks; one program quantizes some rows of a tile, and writes zeros where
the last tiles are padding. Each value is read once and stays in registers. No instruction of Blackwell's is needed, so
that it runs and is tested on earlier GPUs.

E2M1 and E4M3 round by an addition: a float32 plus a large enough power of two keeps no digits below the format's step,
and rounds half to even. The code then lies in the result's upper bits, once its exponent is the format's.
Products with a power of two and of few digits are exact, so each may be one fused operation; all else must not be
fused, or the errors that 4 and 6 are compared by would have other last digits than the reference's.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Triton compiles the kernels from their source: types there are its own, and annotations would be read as its own.
# ruff: noqa: N803 - Triton's own habit: sizes and compile-time constants in capitals
from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["quantize_rows"]

ROWS, WARPS = 32, 4
"""What one program quantizes: so many rows, 64 columns of each, by so many warps. ROWS divides 128."""

_EXPONENT: tl.constexpr = tl.constexpr(0x7F800000)  # a float32's
_E2M1_MAGIC: tl.constexpr = tl.constexpr(1.5 * 2.0**22)  # times 1, 2 or 4: sums are multiples of half as much
_E4M3_MAGIC: tl.constexpr = tl.constexpr(1.5 * 2.0**20)  # times a power of two: sums are multiples of an eighth of it
_E4M3_NAN: tl.constexpr = tl.constexpr(0x7F)


@triton.jit
def _power(size, LEAST: tl.constexpr):
    """The power of two at or below ``size``, at least ``LEAST``."""
    bits = size.to(tl.int32, bitcast=True) & _EXPONENT
    return tl.maximum(bits.to(tl.float32, bitcast=True), LEAST)


@triton.jit
def _e2m1(size, factor):
    """E2M1 values nearest to ``size * factor``."""
    scaled = tl.minimum(size * factor[:, None, None, None, None], 6.0)
    power = _power(scaled, 1.0)
    return tl.fma(power, -_E2M1_MAGIC, tl.fma(power, _E2M1_MAGIC, scaled))


@triton.jit
def _block_scales(peak, encode, PART: tl.constexpr):
    """The E4M3 values nearest to ``encode * peak * PART``, and what values are multiplied by; 0 where they are 0."""
    wanted = tl.minimum(encode * (peak * PART), 448.0)
    power = _power(wanted, 0.015625)
    scale = tl.fma(power, -_E4M3_MAGIC, tl.fma(power, _E4M3_MAGIC, wanted))
    factor = tl.div_rn(encode, tl.where(scale == 0.0, 1.0, scale))
    return scale, tl.where(scale == 0.0, 0.0, factor)


@triton.jit
def _loss(values, scale, size):
    """Squared errors of blocks: neighbours are added, then neighbouring sums."""
    apart = tl.fma(values, -scale[:, None, None, None, None], size)
    return tl.sum(tl.sum(tl.sum(tl.sum(apart * apart, axis=4), axis=3), axis=2), axis=1)


@triton.jit(do_not_specialize=["M"])
def _quantize(x, x_stride, encode_scale, channel_scale, codes, scales, M, K, WORDS, FOUR_OVER_SIX: tl.constexpr,
              SCALED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """``codes`` and ``scales`` are int32: 8 codes a word, ``WORDS`` a row, and 4 scales a word."""
    blocks: tl.constexpr = ROWS * 4
    tile = tl.program_id(0)  # of 64 columns
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tile * 64 + tl.arange(0, 64)
    wide_rows = rows.to(tl.int64)[:, None]
    inside = (rows < M)[:, None] & (cols < K)[None, :]
    y = tl.load(x + wide_rows * x_stride + cols[None, :], mask=inside, other=0.0)
    if SCALED:
        channels = tl.load(channel_scale + cols, mask=cols < K, other=0.0)
        y = (y.to(tl.float32) * channels[None, :]).to(x.dtype.element_ty)
    # A block's 16 values as four axes of 2, so that they are added two by two without changing places.
    y = tl.reshape(y.to(tl.float32), (blocks, 2, 2, 2, 2))
    size = tl.abs(y)
    # Of the bits, which order as magnitudes do, so that a NaN is the largest.
    peak = size.to(tl.int32, bitcast=True)
    peak = tl.max(tl.max(tl.max(tl.max(peak, axis=4), axis=3), axis=2), axis=1).to(tl.float32, bitcast=True)
    encode = tl.load(encode_scale)
    scale, factor = _block_scales(peak, encode, 1.0 / 6.0)
    values = _e2m1(size, factor)
    if FOUR_OVER_SIX:
        lower, factor = _block_scales(peak, encode, 1.0 / 4.0)
        finer = _e2m1(size, factor)
        decode = tl.div_rn(1.0, encode)
        better = _loss(finer, lower * decode, size) < _loss(values, scale * decode, size)
        values = tl.where(better[:, None, None, None, None], finer, values)
        scale = tl.where(better, lower, scale)

    # 2**-126 moves E2M1's exponents to float32's smallest, so that 0.5 is below the normal ones as it is in E2M1.
    code = (values * 2.0**-126).to(tl.int32, bitcast=True) >> 22
    code |= (y.to(tl.int32, bitcast=True) >> 28) & 8
    word = tl.sum(tl.reshape(code, (blocks, 2, 8)) << (tl.arange(0, 8) * 4)[None, None, :], axis=2)
    words = tile * 8 + tl.arange(0, 8)
    stored = (rows < M)[:, None] & (words < WORDS)[None, :]
    tl.store(codes + wide_rows * WORDS + words[None, :], tl.reshape(word, (ROWS, 8)), mask=stored)

    code = (scale * 2.0**-120).to(tl.int32, bitcast=True) >> 20
    code = tl.where(peak == peak, code, _E4M3_NAN)
    word = tl.sum(tl.reshape(code, (ROWS, 4)) << (tl.arange(0, 4) * 8)[None, :], axis=1)
    row = rows % 128
    tl.store(scales + (rows // 128 * tl.num_programs(0) + tile) * 128 + row % 32 * 4 + row // 32, word)


def quantize_rows(
    x: torch.Tensor,
    encode_scale: torch.Tensor,
    four_over_six: bool = False,
    channel_scale: torch.Tensor | None = None,
    padded_columns: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`mixquant_agents.quant.ops.nvfp4_torch.quantize_rows`; the last dimension of ``x`` is contiguous.

    ``encode_scale`` is read on the device: a captured graph replays with what it holds then.
    """
    m, k = x.shape
    padded = k if padded_columns is None else padded_columns
    rows, tiles = triton.cdiv(m, 128) * 128, triton.cdiv(padded, 64)
    codes = torch.empty((m, padded // 8), dtype=torch.int32, device=x.device)
    scales = torch.empty((rows, tiles), dtype=torch.int32, device=x.device)
    if m:
        _quantize[(tiles, rows // ROWS)](
            x, x.stride(0), encode_scale, channel_scale, codes, scales, m, k, padded // 8,
            FOUR_OVER_SIX=four_over_six, SCALED=channel_scale is not None, ROWS=ROWS, num_warps=WARPS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return codes.view(torch.uint8), scales.view(torch.float8_e4m3fn)
