"""Plain, slow references of the kernels: what each must compute, in torch operations anyone can check."""

from __future__ import annotations

import torch

__all__ = ["norm", "quantize_rows", "scaled_mm", "silu_mul"]

LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[M, K]`` and scales ``[M, 1]`` float32: ``x ~ codes * scales``; ``scale = amax / limit`` per row."""
    limit = LIMITS[dtype]
    values = x.float()
    amax = values.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
    scaled = (values * (limit / amax)).clamp(-limit, limit)
    codes = scaled.round().to(torch.int8) if dtype == torch.int8 else scaled.to(dtype)
    return codes, amax / limit


def norm(
    x: torch.Tensor, residual: torch.Tensor | None, gamma: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RMSNorm of ``x + residual`` in x's dtype with float32 arithmetic, and the sum."""
    total = x.float() if residual is None else x.float() + residual.float()
    y = total * torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + eps) * gamma.float()
    return y.to(x.dtype), None if residual is None else total.to(x.dtype)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[M, 2K]`` in x's dtype with float32 arithmetic."""
    gate, up = x.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)


def scaled_mm(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """``(codes * scales) @ (weight * weight_scales).T`` in float64; ``weight`` ``[N, K]``, its scales ``[N, 1]``."""
    left = codes.double() * scales.double()
    right = weight.double() * weight_scales.double()
    return (left @ right.T).to(dtype)
