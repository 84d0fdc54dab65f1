"""Symmetric INT8 with one FP32 scale per row: per output channel for weights, per token for activations.

``x ≈ int8 · scale``, integers in -127..127 (−128 is never used, so that the range is symmetric), half to even.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["INT8_MAX", "Int8Tensor", "dequantize", "quantize", "scales_for"]

INT8_MAX = 127.0


class Int8Tensor(NamedTuple):
    """A quantized matrix: ``values`` int8 ``[R, K]``, ``scales`` float32 ``[R, 1]`` (multiply to decode)."""

    values: torch.Tensor
    scales: torch.Tensor


def scales_for(peaks: torch.Tensor) -> torch.Tensor:
    """Scales of rows whose largest magnitudes are ``peaks`` (float32); 1 for a row of zeros, or of what is so small
    that its scale would be 0."""
    scales = peaks / INT8_MAX
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def quantize(x: torch.Tensor) -> Int8Tensor:
    """Quantize each row of ``[R, K]`` by its own largest magnitude; see :func:`scales_for`."""
    wide = x.float()
    scales = scales_for(wide.abs().amax(dim=-1, keepdim=True))
    return Int8Tensor((wide / scales).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales)


def dequantize(q: Int8Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    return (q.values.float() * q.scales).to(dtype)
