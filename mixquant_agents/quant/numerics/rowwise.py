"""8-bit codes with one float32 scale per row: per output channel for weights, per token for activations.

``x ≈ codes · scale`` with ``scale = amax / limit``. FP8 is E4M3 (OCP 8-bit FP v1.0), whose largest value is 448; INT8
is symmetric, −127 to 127, so that −128 is never used. Both round half to even. The order of operations is the Triton
kernels' (``ops/rowwise_triton.py``), so that they agree bit for bit; emulation computes it the same way.
"""

from __future__ import annotations

import torch

from mixquant_agents.quant.numerics.peaks import peaks

__all__ = ["E4M3_MAX", "INT8_MAX", "LIMITS", "TINY", "dequantize", "quantize", "split"]

E4M3_MAX = 448.0
INT8_MAX = 127.0
LIMITS = {torch.float8_e4m3fn: E4M3_MAX, torch.int8: INT8_MAX}
"""Largest code by the dtype of the codes."""

TINY = 1e-12
"""The least that counts as a row's largest magnitude: a row of zeros gets a tiny scale and zero codes."""


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of ``[R, K]`` by its own largest magnitude.

    Returns:
        codes of ``dtype`` ``[R, K]``, and scales, float32 ``[R, 1]``, which decode by multiplication.
    """
    values = x.float()
    return _codes(values, values.abs().amax(dim=-1, keepdim=True), dtype)


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``[R, K]`` in ``dtype``, computed in float32."""
    return (codes.float() * scales).to(dtype)


def split(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`quantize`, fast on a CPU, with codes as float32: ``(grid [R, K], scales [R, 1])``."""
    values = x.float()
    codes, scales = _codes(values, peaks(values), dtype)
    return codes.float(), scales


def _codes(values: torch.Tensor, amax: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    amax = amax.clamp_min(TINY)
    limit = torch.full_like(amax, LIMITS[dtype])  # a tensor: torch multiplies by the reciprocal of a Python number
    scaled = (values * (limit / amax)).clamp_(-limit, limit)
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), amax / limit
