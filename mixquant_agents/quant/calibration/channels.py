"""What input channels are multiplied by before they are quantized, so that none drowns the others of its block.

Twice the scale of a block is twice its rounding error, and one large channel of 16 sets it. So large channels are made
smaller and small ones larger, and the weight's columns the other way round (as SmoothQuant, arXiv 2211.10438, and AWQ,
2306.00978, do). How strongly, each layer decides by the error of its own outputs on inputs that calibration saw; no
scales at all are among what it tries. Powers of two: multiplying rounds nothing, so rows that stay exact and kernels
that multiply while they normalize need no second thought.
"""

from __future__ import annotations

import torch

from mixquant_agents.quant.numerics import nvfp4

__all__ = ["STRENGTHS", "balanced"]

STRENGTHS = ((0.0, 0.0), (0.25, 0.0), (0.35, 0.25), (0.5, 0.0), (0.5, 0.25), (0.5, 0.5), (0.65, 0.0), (0.65, 0.25))
"""``(a, b)``: channels are multiplied by ``weight^b / input^a``, both as root mean squares."""

_WEIGHTS_SHARE = 0.3
"""What of the rounding error of nearest weights is left after GPTQ, about."""

_FLOOR = 1e-4
"""Of the largest: channels that hardly ever speak are not blown up beyond it."""


def balanced(weight: torch.Tensor, second: torch.Tensor, sample: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Powers of two ``[K]``, float32, of the strength that loses least.

    Args:
        weight: exact, ``[N, K]``.
        second: second moments of its inputs, ``[K, K]``.
        sample: some of its inputs, ``[R, K]``.
        peaks: largest magnitude of each channel, ``[K]``.
    """
    weight, sample = weight.float(), sample.float()
    inputs = _floored(second.diagonal().clamp_min(0).sqrt().float())
    outputs = _floored(weight.square().mean(0).sqrt())
    exact = sample @ weight.T
    best, least = torch.ones_like(inputs), None
    for a, b in STRENGTHS:
        scale = _powers(outputs**b / inputs**a)
        loss = _loss(weight / scale, sample * scale, exact, float((peaks * scale).max()))
        if least is None or loss < least:
            best, least = scale, loss
    return best


def _floored(size: torch.Tensor) -> torch.Tensor:
    top = size.max()
    return torch.where(top > 0, torch.maximum(size, top * _FLOOR), torch.ones_like(size))


def _powers(scale: torch.Tensor) -> torch.Tensor:
    exponents = scale.log2()
    return torch.exp2((exponents - exponents.mean()).round())


def _loss(weight: torch.Tensor, rows: torch.Tensor, exact: torch.Tensor, peak: float) -> float:
    scale = torch.tensor(nvfp4.static_global_scale(peak), device=rows.device)
    grid, decode = nvfp4.split_scaled(rows, scale)
    nearest, own = nvfp4.split_tensor(weight)
    by_inputs = (grid * decode @ weight.T - exact).square().sum()
    by_weights = (rows @ (nearest * own).T - exact).square().sum()
    return float(by_inputs + _WEIGHTS_SHARE * by_weights)
