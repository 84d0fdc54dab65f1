"""MXFP4: E2M1 values in blocks of 32 along K, one E8M0 scale per block (OCP MX v1.0 §5.3.3, §5.4.1, §6.3).

``x ≈ e2m1 · 2**(scale - 127)``. A block's scale is the largest power of two not above its largest magnitude, divided by
4, the largest power of two of E2M1: that magnitude is scaled into [4, 8), and what is then above 6 saturates. Every
scale belongs to 32 values of one row, so rows never depend on each other; weights and activations are rounded alike.

Emulated alone: there is no product in this format here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.numerics.e2m1 import blocks, pack, round_e2m1, round_e2m1_, unpack
from mixquant_agents.quant.numerics.peaks import peaks

__all__ = ["BLOCK", "FORMAT", "Mxfp4Format", "Mxfp4Tensor", "dequantize", "quantize"]

BLOCK = 32
_BIAS = 127
_NAN = 255
_LARGEST_EXPONENT = 2
"""Of E2M1: 6 is 1.5 · 2**2."""


class Mxfp4Tensor(NamedTuple):
    """A quantized matrix ``[R, K]``.

    Attributes:
        packed: uint8 ``[R, ceil(K/32)*16]``, two codes a byte, the lower column in the low nibble; padding is 0.
        scales: E8M0 as uint8 ``[R, ceil(K/32)]``: the exponent plus 127; 255 is NaN.
        columns: K.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    columns: int


def _scale_codes(block_peaks: torch.Tensor) -> torch.Tensor:
    """E8M0 codes, int32, of blocks whose largest magnitudes are ``block_peaks`` (float32): NaN where that is no
    number; the smallest scale for a block of zeros."""
    _, exponent = torch.frexp(block_peaks)  # mantissa in [0.5, 1), so the floor of log2 is exponent - 1
    codes = (exponent - 1 - _LARGEST_EXPONENT + _BIAS).clamp(0, _NAN - 1)
    codes = torch.where(block_peaks > 0, codes, torch.zeros_like(codes))
    return torch.where(torch.isfinite(block_peaks), codes, torch.full_like(codes, _NAN))


def _power(codes: torch.Tensor, sign: int) -> torch.Tensor:
    """``2 ** (sign · exponent)`` of E8M0 codes: float32, NaN for NaN."""
    power = torch.ldexp(torch.ones(codes.shape, device=codes.device), sign * (codes.int() - _BIAS))
    return torch.where(codes == _NAN, torch.full_like(power, torch.nan), power)


def quantize(x: torch.Tensor) -> Mxfp4Tensor:
    """Quantize ``[R, K]``, any float dtype, along K; values round half to even and saturate. Plain and slow."""
    parts = blocks(x.float(), BLOCK)
    codes = _scale_codes(parts.abs().amax(dim=-1, keepdim=True))
    values = torch.where(codes == _NAN, torch.zeros_like(parts), round_e2m1(parts * _power(codes, -1)))
    return Mxfp4Tensor(pack(values.flatten(1)), codes.squeeze(-1).to(torch.uint8), x.shape[-1])


def dequantize(q: Mxfp4Tensor) -> torch.Tensor:
    """float32 ``[R, K]``; NaN in every value of a block whose scale is NaN."""
    values = unpack(q.packed).reshape(q.packed.shape[0], -1, BLOCK)
    return (values * _power(q.scales, 1).unsqueeze(-1)).flatten(1)[:, : q.columns]


class Mxfp4Format(Format):
    """See the module."""

    name = NumberFormat.MXFP4

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`quantize`."""
        return dequantize(quantize(x))

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`. Scales of blocks are in the grid: they are powers of
        two, so every dtype that is used holds it exactly."""
        grid = self._grid(x)
        return grid, grid.new_ones(grid.shape[0], 1)

    def split_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        grid = self._grid(weight)
        return grid, grid.new_ones(())

    @staticmethod
    def _grid(x: torch.Tensor) -> torch.Tensor:
        parts = blocks(x.float(), BLOCK)
        codes = _scale_codes(peaks(parts))
        grid = round_e2m1_(parts * _power(codes, -1)).mul_(_power(codes, 1))
        return grid.flatten(1)[:, : x.shape[1]]


FORMAT = Mxfp4Format()
