"""Plain, slow forms of the kernels, with their signatures: what each must compute, in torch operations.

Also what the fused operations run where there is no GPU, so that graph rewriting and routing are tested on a CPU.
"""

from __future__ import annotations

import torch

from mixquant_agents.quant.nested import layout
from mixquant_agents.quant.numerics import rowwise

__all__ = [
    "gelu_rows",
    "norm_quantize_rows",
    "norm_rows",
    "quantize_rows",
    "scaled_mm",
    "scatter_rows",
    "silu_quantize_rows",
    "silu_rows",
]


def quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[M, K]`` and scales ``[M, 1]`` float32: ``x ~ codes * scales``; ``scale = amax / limit`` per row.

    With ``ordered`` the columns of the codes lie as those of nested weights.
    """
    _fill(x, index, slot)
    codes, scales = rowwise.quantize(x, dtype)
    return (layout.ordered(codes) if ordered else codes), scales


def norm_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    eps: float,
    channel_scale: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RMSNorm of ``x + residual`` in x's dtype with float32 arithmetic, and the sum.

    Channels of the rows, not of those in ``slot``, are multiplied by ``channel_scale``, float32 ``[K]``.
    """
    total = x.float() if residual is None else x.float() + residual.float()
    y = total * torch.rsqrt(total.pow(2).mean(dim=-1, keepdim=True) + eps) * gamma.float()
    rows = y.to(x.dtype)
    _fill(rows, index, slot)
    return _scaled(rows, channel_scale), None if residual is None else total.to(x.dtype)


def norm_quantize_rows(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    gamma: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """:func:`norm_rows`, then :func:`quantize_rows`."""
    y, total = norm_rows(x, residual, gamma, eps)
    return *quantize_rows(y, dtype, index, slot, ordered), total


def silu_rows(
    x: torch.Tensor,
    channel_scale: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
) -> torch.Tensor:
    """``silu(gate) * up`` of ``[M, 2K]`` in x's dtype with float32 arithmetic; scaled as :func:`norm_rows` are."""
    gate, up = x.float().chunk(2, dim=-1)
    rows = (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)
    _fill(rows, index, slot)
    return _scaled(rows, channel_scale)


def silu_quantize_rows(
    x: torch.Tensor,
    dtype: torch.dtype,
    index: torch.Tensor | None = None,
    slot: torch.Tensor | None = None,
    ordered: bool = False,
    gelu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`silu_rows` (``gelu``: with GELU's tanh form in SiLU's place), then :func:`quantize_rows`."""
    return quantize_rows(gelu_rows(x) if gelu else silu_rows(x), dtype, index, slot, ordered)


def gelu_rows(x: torch.Tensor) -> torch.Tensor:
    """``gelu(gate) * up`` of ``[M, 2K]`` in x's dtype with float32 arithmetic; GELU in its tanh form."""
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.gelu(gate, approximate="tanh") * up).to(x.dtype)


def scatter_rows(rows: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """``out[index[i]] = rows[i]`` for every ``index[i] >= 0``."""
    used = index >= 0
    out[index[used].long()] = rows[used]


def _scaled(rows: torch.Tensor, channel_scale: torch.Tensor | None) -> torch.Tensor:
    return rows if channel_scale is None else rows * channel_scale.to(rows.dtype)


def _fill(x: torch.Tensor, index: torch.Tensor | None, slot: torch.Tensor | None) -> None:
    if index is not None and slot is not None:
        used = index >= 0
        slot[used] = x[index[used].long()]


def scaled_mm(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """``(codes * scales) @ (weight * weight_scales).T`` in float64; ``weight`` ``[N, K]``, its scales ``[N, 1]``."""
    left = codes.double() * scales.double()
    right = weight.double() * weight_scales.double()
    return (left @ right.T).to(dtype)
