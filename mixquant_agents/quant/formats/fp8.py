"""FP8-E4M3 with one FP32 scale per row: per output channel for weights, per token for activations.

``x ≈ e4m3 · scale``. Values saturate at ±448 and round half to even (OCP 8-bit FP v1.0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["E4M3_MAX", "Fp8Tensor", "dequantize", "quantize", "scales_for"]

E4M3_MAX = 448.0


class Fp8Tensor(NamedTuple):
    """A quantized matrix: ``values`` float8_e4m3fn ``[R, K]``, ``scales`` float32 ``[R, 1]`` (multiply to decode)."""

    values: torch.Tensor
    scales: torch.Tensor


def scales_for(peaks: torch.Tensor) -> torch.Tensor:
    """Scales of rows whose largest magnitudes are ``peaks`` (float32); 1 for a row of zeros, or of what is so small
    that its scale would be 0."""
    scales = peaks / E4M3_MAX
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def quantize(x: torch.Tensor) -> Fp8Tensor:
    """Quantize each row of ``[R, K]`` by its own largest magnitude; see :func:`scales_for`."""
    wide = x.float()
    scales = scales_for(wide.abs().amax(dim=-1, keepdim=True))
    return Fp8Tensor((wide / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales)


def dequantize(q: Fp8Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    return (q.values.float() * q.scales).to(dtype)
