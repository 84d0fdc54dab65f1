"""Symmetric INT8 with one FP32 scale per row: per output channel for weights, per token for activations.

``x ≈ int8 · scale``, integers in -127..127 (−128 is never used, so that the range is symmetric), half to even.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixquant_agents.quant.formats.scales import row_scales

__all__ = ["INT8_MAX", "Int8Tensor", "dequantize", "quantize"]

INT8_MAX = 127.0


class Int8Tensor(NamedTuple):
    """A quantized matrix: ``values`` int8 ``[R, K]``, ``scales`` float32 ``[R, 1]`` (multiply to decode)."""

    values: torch.Tensor
    scales: torch.Tensor


def quantize(x: torch.Tensor) -> Int8Tensor:
    """Quantize each row of ``[R, K]`` by its own largest magnitude; see :func:`row_scales`."""
    wide = x.float()
    scales = row_scales(wide.abs().amax(dim=-1, keepdim=True), INT8_MAX)
    return Int8Tensor((wide / scales).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales)


def dequantize(q: Int8Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    return (q.values.float() * q.scales).to(dtype)
