"""Rows quantized to NVFP4 as vLLM's products read them, in torch operations: what the kernel must compute.

The numbers are those of :mod:`mixquant_agents.quant.numerics.nvfp4`; what is added is the layout of the block scales.
"""

from __future__ import annotations

import torch

from mixquant_agents.quant.numerics import nvfp4

__all__ = ["ROWS", "SCALES", "quantize_rows", "swizzled"]

ROWS, SCALES = 128, 4
"""Block scales lie in tiles of 128 rows and 4 blocks."""


def quantize_rows(
    x: torch.Tensor,
    encode_scale: torch.Tensor,
    four_over_six: bool = False,
    channel_scale: torch.Tensor | None = None,
    padded_columns: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and block scales of ``x``.

    Args:
        x: ``[M, K]``, K a multiple of 16.
        encode_scale: the global scale, a power of two, float32 of one element.
        four_over_six: a block's largest magnitude becomes 6 or 4, whichever leaves the smaller squared error.
        channel_scale: powers of two that channels are multiplied by first, float32 ``[K]``; ``None``: by 1.
        padded_columns: width of the codes, a multiple of 16, filled with zeros from K on; ``None``: K.

    Returns:
        E2M1 codes, uint8 ``[M, padded/2]``, the lower column in the low nibble; and :func:`swizzled` E4M3 block scales.
    """
    rows = x if channel_scale is None else x * channel_scale.to(x.dtype)
    quantized = nvfp4.quantize(rows, encode_scale.reshape(()), four_over_six)
    missing = 0 if padded_columns is None else padded_columns - x.shape[1]
    codes = torch.nn.functional.pad(quantized.packed, (0, missing // 2))
    scales = torch.nn.functional.pad(quantized.scales.view(torch.uint8), (0, missing // nvfp4.BLOCK))
    return codes, swizzled(scales.view(torch.float8_e4m3fn))


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """Block scales ``[M, B]`` as Blackwell's products read them, float8_e4m3fn of both sizes rounded up to whole tiles.

    Tiles follow each other along a row. Within a tile of 512 bytes, row ``r`` and block ``b`` are at
    ``r % 32 * 16 + r // 32 * 4 + b``: PTX ISA, "Scale factor B layout for 4x". Padding is 0.
    """
    m, count = scales.shape
    padded = torch.nn.functional.pad(scales.view(torch.uint8), (0, -count % SCALES, 0, -m % ROWS))
    tiles = padded.reshape(-1, SCALES, ROWS // SCALES, padded.shape[1] // SCALES, SCALES)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape).view(torch.float8_e4m3fn)
