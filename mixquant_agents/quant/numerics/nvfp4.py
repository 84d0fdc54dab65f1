"""NVFP4: E2M1 values in blocks of 16 along K, one FP8-E4M3 scale per block, one FP32 scale above them.

``x ≈ e2m1 · block_scale / global_scale``. The global scale *encodes* (it multiplies what is quantized), as in vLLM's
kernels and compressed-tensors; ModelOpt stores its reciprocal as ``weight_scale_2``. Values round half to even.
Operation order follows vLLM's ``ref_nvfp4_quant`` and CUDA kernel, so that results agree bit for bit.

Sources: OCP MX v1.0 §5.3.3 (E2M1), §5.3.1 (E4M3); NVIDIA, "Introducing NVFP4" (blocks of 16, two-level scaling).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixquant_agents.quant.numerics.e2m1 import E2M1_MAX, blocks, pack, round_e2m1, round_e2m1_, unpack
from mixquant_agents.quant.numerics.peaks import peaks
from mixquant_agents.quant.numerics.rowwise import E4M3_MAX

__all__ = [
    "BLOCK",
    "Nvfp4Tensor",
    "block_scales",
    "dequantize",
    "global_scale_for",
    "quantize",
    "round_values",
    "row_global_scale",
    "split_rows",
    "split_tensor",
    "tensor_global_scale",
]

BLOCK = 16
_ONE_SIXTH = 1.0 / E2M1_MAX


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


def tensor_global_scale(x: torch.Tensor) -> torch.Tensor:
    """FP32 ``[]`` that maps the largest magnitude of ``x`` to the top of the range, 448·6; 1 for an all-zero ``x``."""
    peak = x.abs().amax().float()
    return torch.where(peak > 0, E4M3_MAX * E2M1_MAX / peak, torch.ones_like(peak))


def row_global_scale(x: torch.Tensor) -> torch.Tensor:
    """FP32 ``[R, 1]`` for ``[R, K]``: :func:`global_scale_for` of each row's largest magnitude."""
    return global_scale_for(x.abs().amax(dim=-1, keepdim=True).float())


def global_scale_for(peak: torch.Tensor) -> torch.Tensor:
    """The power of two that brings each of ``peak`` (float32, any shape) into the top binade of the range; 1 for 0.

    A power of two shifts exponents only: wherever a global scale of 1 neither saturates nor underflows, every value
    rounds as it would with 1. Each row depends on itself alone, never on its batch.
    """
    _, exponent = torch.frexp(E4M3_MAX * E2M1_MAX / peak)  # mantissa in [0.5, 1), so the floor of log2 is exponent - 1
    scale = torch.ldexp(torch.ones_like(peak), (exponent - 1).clamp(-100, 100))
    return torch.where(peak > 0, scale, torch.ones_like(peak))


def block_scales(block_peaks: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of blocks whose largest magnitudes are ``block_peaks`` (float32 ``[R, B, 1]``).

    Returns:
        scales, float8_e4m3fn ``[R, B, 1]``, and what values are multiplied by before they are rounded, float32
        ``[R, B, 1]``: 0 where the scale underflowed to 0.
    """
    per_block = global_scale.unsqueeze(-1) if global_scale.ndim == 2 else global_scale
    scales = (per_block * (block_peaks * _ONE_SIXTH)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    wide = scales.float()
    factor = torch.where(wide == 0, torch.zeros_like(wide), 1.0 / (wide * (1.0 / per_block)))
    return scales, factor


def round_values(x: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The E2M1 values and block scales of ``x``.

    Args:
        x: ``[R, K]``, any float dtype.
        global_scale: float32 ``[]`` or ``[R, 1]``.

    Returns:
        E2M1 values as float32 ``[R, ceil(K/16), 16]``, and block scales as float8_e4m3fn ``[R, ceil(K/16), 1]``. A
        block whose scale underflows to 0 has all values 0.
    """
    parts = blocks(x, BLOCK).float()
    scales, factor = block_scales(parts.abs().amax(dim=-1, keepdim=True), global_scale)
    return round_e2m1(parts * factor), scales


def quantize(x: torch.Tensor, global_scale: torch.Tensor) -> Nvfp4Tensor:
    """Quantize ``[R, K]`` along K. ``global_scale`` as in :func:`round_values`."""
    values, scales = round_values(x, global_scale)
    return Nvfp4Tensor(pack(values.flatten(1)), scales.squeeze(-1), global_scale, x.shape[-1])


def dequantize(q: Nvfp4Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    values = unpack(q.packed).reshape(q.packed.shape[0], -1, BLOCK)
    per_block = q.scales.float() / q.global_scale
    return (values * per_block.unsqueeze(-1)).flatten(1)[:, : q.columns].to(dtype)


def split_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded with one scale for the whole of ``x`` ``[R, K]``, fast: grid float32 ``[R, K]``, scale float32 ``[]``."""
    return _split(x, by_row=False)


def split_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded with a power-of-two scale per row, fast: grid float32 ``[R, K]``, scales float32 ``[R, 1]``."""
    return _split(x, by_row=True)


def _split(x: torch.Tensor, by_row: bool) -> tuple[torch.Tensor, torch.Tensor]:
    parts = blocks(x, BLOCK).float()
    block_peaks = peaks(parts)
    global_scale = global_scale_for(block_peaks.amax(dim=1)) if by_row else tensor_global_scale(block_peaks)
    scales, factor = block_scales(block_peaks, global_scale)
    # E2M1 times E4M3 needs 6 significant bits: exact in bfloat16, float16 and float32.
    grid = round_e2m1_(parts * factor).mul_(scales.float()).flatten(1)
    return grid[:, : x.shape[1]], 1.0 / global_scale
