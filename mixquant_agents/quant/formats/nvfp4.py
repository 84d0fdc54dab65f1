"""NVFP4: E2M1 values in blocks of 16 along K, one FP8-E4M3 scale per block, one FP32 scale above them.

``x ≈ e2m1 · block_scale / global_scale``. The global scale *encodes* (it multiplies what is quantized), as in vLLM's
kernels and compressed-tensors; ModelOpt stores its reciprocal as ``weight_scale_2``. Values round half to even.
Operation order follows vLLM's ``ref_nvfp4_quant`` and CUDA kernel, so that results agree bit for bit.

Sources: OCP MX v1.0 §5.3.3 (E2M1), §5.3.1 (E4M3); NVIDIA, "Introducing NVFP4" (blocks of 16, two-level scaling).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = [
    "BLOCK",
    "E2M1_MAX",
    "E4M3_MAX",
    "Nvfp4Tensor",
    "block_scales",
    "blocks",
    "dequantize",
    "global_scale_for",
    "pack",
    "quantize",
    "round_e2m1",
    "round_values",
    "row_global_scale",
    "swizzle_scales",
    "tensor_global_scale",
    "unpack",
    "unswizzle_scales",
]

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
_E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
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


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest E2M1 value (float32), ties to the even code, saturating at ±6. Keeps the sign of zero and NaN."""
    x = x.clamp(-E2M1_MAX, E2M1_MAX)
    size = x.abs()
    coarse = torch.where(size < 4.0, x.round(), (x * 0.5).round() * 2.0)
    return torch.where(size < 2.0, (x * 2.0).round() * 0.5, coarse)


def blocks(x: torch.Tensor) -> torch.Tensor:
    """``[R, K]`` as ``[R, ceil(K/16), 16]``, padded with zeros."""
    missing = -x.shape[-1] % BLOCK
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    return x.reshape(x.shape[0], x.shape[1] // BLOCK, BLOCK)


def block_scales(peaks: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of blocks whose largest magnitudes are ``peaks`` (float32 ``[R, B, 1]``).

    Returns:
        scales, float8_e4m3fn ``[R, B, 1]``, and what values are multiplied by before they are rounded, float32
        ``[R, B, 1]``: 0 where the scale underflowed to 0.
    """
    per_block = global_scale.unsqueeze(-1) if global_scale.ndim == 2 else global_scale
    scales = (per_block * (peaks * _ONE_SIXTH)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
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
    parts = blocks(x).float()
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


def pack(values: torch.Tensor) -> torch.Tensor:
    """E2M1 values ``[R, K]`` (K even) to uint8 ``[R, K/2]``, the lower column in the low nibble, bit 3 the sign."""
    size = values.abs()
    codes = torch.where(size < 2.0, size * 2.0, torch.where(size < 4.0, size + 2.0, size * 0.5 + 4.0)).to(torch.uint8)
    codes = codes | (torch.signbit(values).to(torch.uint8) << 3)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """uint8 ``[R, K/2]`` to E2M1 values, float32 ``[R, K]``."""
    codes = torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2)
    table = torch.tensor(_E2M1_VALUES + tuple(-v for v in _E2M1_VALUES), device=packed.device)
    return table[codes.long()]


def swizzle_scales(scales: torch.Tensor) -> torch.Tensor:
    """Linear block scales ``[R, B]`` to the layout of Blackwell's tensor cores: 128x4 tiles, zero-padded.

    Returns:
        the same dtype, ``[ceil(R/128)*128, ceil(B/4)*4]``, where each tile of 128 rows and 4 columns lies contiguous as
        ``[32 rows, 4 row groups, 4 columns]`` (cuBLAS, "1D block scaling factors layout").
    """
    rows, columns = scales.shape
    row_tiles, column_tiles = -(-rows // 128), -(-columns // 4)
    padded = torch.zeros(row_tiles * 128, column_tiles * 4, dtype=torch.uint8, device=scales.device)
    padded[:rows, :columns] = scales.view(torch.uint8)
    tiles = padded.reshape(row_tiles, 4, 32, column_tiles, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(row_tiles * 128, column_tiles * 4).view(scales.dtype)


def unswizzle_scales(swizzled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of :func:`swizzle_scales`: linear ``[rows, columns]``."""
    row_tiles, column_tiles = swizzled.shape[0] // 128, swizzled.shape[1] // 4
    tiles = swizzled.view(torch.uint8).reshape(row_tiles, column_tiles, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(row_tiles * 128, column_tiles * 4)[:rows, :columns].contiguous().view(swizzled.dtype)
