"""FP8-E4M3 with one FP32 scale per row: per output channel for weights, per token for activations.

``x ≈ e4m3 · scale``. Values saturate at ±448 and round half to even (OCP 8-bit FP v1.0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixquant_agents.quant.formats.scales import row_scales

__all__ = ["E4M3_MAX", "Fp8Tensor", "dequantize", "quantize"]

E4M3_MAX = 448.0


class Fp8Tensor(NamedTuple):
    """A quantized matrix: ``values`` float8_e4m3fn ``[R, K]``, ``scales`` float32 ``[R, 1]`` (multiply to decode)."""

    values: torch.Tensor
    scales: torch.Tensor


def quantize(x: torch.Tensor) -> Fp8Tensor:
    """Quantize each row of ``[R, K]`` by its own largest magnitude; see :func:`row_scales`."""
    wide = x.float()
    scales = row_scales(wide.abs().amax(dim=-1, keepdim=True), E4M3_MAX)
    return Fp8Tensor((wide / scales).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scales)


def dequantize(q: Fp8Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    return (q.values.float() * q.scales).to(dtype)
