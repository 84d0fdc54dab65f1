"""NVFP4: E2M1 values in blocks of 16 along K, one FP8-E4M3 scale per block, one FP32 scale above them.

``x ≈ e2m1 · block_scale / global_scale``. The global scale *encodes* (it multiplies what is quantized), as in vLLM's
kernels and compressed-tensors; ModelOpt stores its reciprocal as ``weight_scale_2``. Values round half to even.
Operation order follows vLLM's ``ref_nvfp4_quant`` and CUDA kernel, so that results agree bit for bit.

Sources: OCP MX v1.0 §5.3.3 (E2M1), §5.3.1 (E4M3); NVIDIA, "Introducing NVFP4" (blocks of 16, two-level scaling).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from mixquant_agents.quant.numerics.e2m1 import E2M1_MAX, blocks, pack, round_e2m1, round_e2m1_, unpack
from mixquant_agents.quant.numerics.peaks import peaks
from mixquant_agents.quant.numerics.rowwise import E4M3_MAX

__all__ = [
    "ACTIVATION_MARGIN",
    "BLOCK",
    "Nvfp4Tensor",
    "block_scales",
    "dequantize",
    "quantize",
    "round_values",
    "split_scaled",
    "split_tensor",
    "static_global_scale",
    "tensor_global_scale",
]

BLOCK = 16
_TOP, _LOWER_TOP = E2M1_MAX, 4.0
"""What a block's largest magnitude becomes: 6, or with 4/6 scales 4, where E2M1's steps are finer."""

_LOWER_E4M3_MAX = 256.0
"""Largest block scale that leaves room for the 1.5 times larger one of a block that ends at 4 (arXiv 2512.02010)."""

ACTIVATION_MARGIN = 4.0
"""How far above the largest magnitude that calibration saw the range of activations ends, at least."""


class Nvfp4Tensor(NamedTuple):
    """A quantized matrix ``[R, K]``.

    Attributes:
        packed: uint8 ``[R, ceil(K/16)*8]``, two codes a byte, the lower column in the low nibble; padded columns are 0.
        scales: float8_e4m3fn ``[R, ceil(K/16)]``, linear (not swizzled) layout.
        global_scale: float32 ``[]`` or ``[R, 1]``; encodes, so dequantizing divides by it.
        columns: K.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    columns: int

    def to(self, device: torch.device) -> Nvfp4Tensor:
        """The same on another device."""
        return Nvfp4Tensor(self.packed.to(device), self.scales.to(device), self.global_scale.to(device), self.columns)


def tensor_global_scale(x: torch.Tensor, four_over_six: bool = False) -> torch.Tensor:
    """FP32 ``[]`` that maps the largest magnitude of ``x`` to the top of the range, 448·6 (256·6 where blocks may end
    at 4); 1 for an all-zero ``x``."""
    peak = x.abs().amax().float()
    top = (_LOWER_E4M3_MAX if four_over_six else E4M3_MAX) * E2M1_MAX
    return torch.where(peak > 0, top / peak, torch.ones_like(peak))


def static_global_scale(peak: float, margin: float = ACTIVATION_MARGIN) -> float:
    """The largest power of two with which ``margin · peak`` is still in the range, 448·6; 1 for a peak of 0.

    A power of two shifts exponents only: wherever a global scale of 1 neither saturates nor underflows, every value
    rounds as it would with 1. Set before the first request, it makes no row depend on another.
    """
    if not 0 < peak < math.inf:
        return 1.0
    _, exponent = math.frexp(E4M3_MAX * E2M1_MAX / (margin * peak))  # mantissa in [0.5, 1): floor of log2, plus 1
    return math.ldexp(1.0, max(-60, min(60, exponent - 1)))


def block_scales(
    block_peaks: torch.Tensor, global_scale: torch.Tensor, top: float = _TOP
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of blocks whose largest magnitudes are ``block_peaks`` (float32 ``[R, B, 1]``) and are to become ``top``.

    Returns:
        scales, float8_e4m3fn ``[R, B, 1]``, and what values are multiplied by before they are rounded, float32
        ``[R, B, 1]``: 0 where the scale underflowed to 0.
    """
    per_block = global_scale.unsqueeze(-1) if global_scale.ndim == 2 else global_scale
    scales = (per_block * (block_peaks * (1.0 / top))).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    wide = scales.float()
    factor = torch.where(wide == 0, torch.zeros_like(wide), 1.0 / (wide * (1.0 / per_block)))
    return scales, factor


def round_values(
    x: torch.Tensor, global_scale: torch.Tensor, four_over_six: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The E2M1 values and block scales of ``x``.

    Args:
        x: ``[R, K]``, any float dtype.
        global_scale: float32 ``[]`` or ``[R, 1]``.
        four_over_six: a block's largest magnitude becomes 6 or 4, whichever leaves the smaller squared error.

    Returns:
        E2M1 values as float32 ``[R, ceil(K/16), 16]``, and block scales as float8_e4m3fn ``[R, ceil(K/16), 1]``. A
        block whose scale underflows to 0 has all values 0.
    """
    parts = blocks(x, BLOCK).float()
    block_peaks = parts.abs().amax(dim=-1, keepdim=True)
    scales, factor = block_scales(block_peaks, global_scale)
    values = round_e2m1(parts * factor)
    if not four_over_six:
        return values, scales
    lower, factor = block_scales(block_peaks, global_scale, _LOWER_TOP)
    finer = round_e2m1(parts * factor)
    per_block = global_scale.unsqueeze(-1) if global_scale.ndim == 2 else global_scale
    better = _loss(finer * lower.float(), parts, per_block) < _loss(values * scales.float(), parts, per_block)
    chosen = torch.where(better, lower.view(torch.uint8), scales.view(torch.uint8)).view(torch.float8_e4m3fn)
    return torch.where(better, finer, values), chosen


def _loss(grid: torch.Tensor, parts: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """Squared error of each block ``[R, B, 1]``.

    Neighbours are added, then neighbouring sums, as kernels add: the errors of two block scales may differ by less than
    the order of a sum changes.
    """
    squares = (grid / global_scale - parts).square()
    while squares.shape[-1] > 1:
        squares = squares[..., ::2] + squares[..., 1::2]
    return squares


def quantize(x: torch.Tensor, global_scale: torch.Tensor, four_over_six: bool = False) -> Nvfp4Tensor:
    """Quantize ``[R, K]`` along K; see :func:`round_values`."""
    values, scales = round_values(x, global_scale, four_over_six)
    return Nvfp4Tensor(pack(values.flatten(1)), scales.squeeze(-1), global_scale, x.shape[-1])


def dequantize(q: Nvfp4Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    values = unpack(q.packed).reshape(q.packed.shape[0], -1, BLOCK)
    per_block = q.scales.float() / q.global_scale
    return (values * per_block.unsqueeze(-1)).flatten(1)[:, : q.columns].to(dtype)


def split_tensor(x: torch.Tensor, four_over_six: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded with one scale for the whole of ``x`` ``[R, K]``, fast: grid float32 ``[R, K]``, scale float32 ``[]``."""
    return split_scaled(x, tensor_global_scale(x, four_over_six), four_over_six)


def split_scaled(
    x: torch.Tensor, global_scale: torch.Tensor, four_over_six: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded with ``global_scale`` (float32 ``[]``), fast: grid float32 ``[R, K]``, and its inverse."""
    parts = blocks(x, BLOCK).float()
    block_peaks = peaks(parts)
    grid = _grid(parts, block_peaks, global_scale, _TOP)
    if four_over_six:
        finer = _grid(parts, block_peaks, global_scale, _LOWER_TOP)
        better = _loss(finer, parts, global_scale) < _loss(grid, parts, global_scale)
        grid = torch.where(better, finer, grid)
    return grid.flatten(1)[:, : x.shape[1]], 1.0 / global_scale


def _grid(parts: torch.Tensor, block_peaks: torch.Tensor, global_scale: torch.Tensor, top: float) -> torch.Tensor:
    scales, factor = block_scales(block_peaks, global_scale, top)
    # E2M1 times E4M3 needs 6 significant bits: exact in bfloat16, float16 and float32.
    return round_e2m1_(parts * factor).mul_(scales.float())
