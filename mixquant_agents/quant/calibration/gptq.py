"""GPTQ rounding to NVFP4: column by column, what a column loses is carried on to those after it.

Minimizes ``|(W - W') X|²`` over the inputs ``X`` seen in calibration (arXiv 2210.17323). A block's scale is chosen when
the first of its 16 columns is reached, from the values as they are by then. Where the inputs are not those of the exact
model (an engine that quantizes reads what quantized layers before it wrote, rounded), the weight is first moved to the
one that, given these inputs, comes nearest to what the exact weight makes of the exact ones: least squares, shrunk
towards the weight itself. Free at run time: the twin is no more than rounded differently.
"""

from __future__ import annotations

import torch

from mixquant_agents.quant.numerics.e2m1 import pack, round_e2m1
from mixquant_agents.quant.numerics.nvfp4 import BLOCK, Nvfp4Tensor, round_values, tensor_global_scale

__all__ = ["gptq", "moved"]

_LAZY = 128
"""Columns after which the rest of the matrix is updated, in one product."""


def moved(weight: torch.Tensor, second: torch.Tensor, cross: torch.Tensor, shrink: float = 0.1) -> torch.Tensor:
    """The weight ``[N, K]`` that is best for inputs ``q`` where the exact weight would read ``x``.

    Args:
        weight: exact, ``[N, K]``.
        second: ``E[q qᵀ]``, ``[K, K]``.
        cross: ``E[x qᵀ]``, ``[K, K]``.
        shrink: of the mean of the diagonal; how strongly it is held at ``weight``.
    """
    second, cross = second.double(), cross.double()
    damped = _damped(second, shrink)
    gain = torch.linalg.solve(damped, (cross + damped - second).T).T  # (cross + λ)·(second + λ)⁻¹, near the identity
    return (weight.double() @ gain).float()


def gptq(
    weights: torch.Tensor, second: torch.Tensor, *, four_over_six: bool = False, damping: float = 0.01
) -> list[Nvfp4Tensor]:
    """Round ``L`` weights of one shape side by side, since a column's work alone is too little for a GPU.

    Args:
        weights: ``[L, N, K]``, any float dtype, K a multiple of 16; not changed.
        second: second moments of their inputs, ``[L, K, K]``.
        four_over_six: see :func:`~mixquant_agents.quant.numerics.nvfp4.round_values`.
        damping: of the mean of the diagonal, added to it.
    """
    values = weights.float().clone()
    count, rows, columns = values.shape
    factor = torch.stack([_factor(_damped(each.double(), damping)) for each in second])
    scale = torch.stack([tensor_global_scale(each, four_over_six) for each in values])
    by_row = scale.repeat_interleave(rows).unsqueeze(1)
    codes = torch.empty_like(values)
    scales = torch.empty(count, rows, columns // BLOCK, dtype=torch.float8_e4m3fn, device=values.device)
    for first in range(0, columns, _LAZY):
        stop = min(first + _LAZY, columns)
        errors = torch.empty(count, rows, stop - first, device=values.device)
        for column in range(first, stop):
            if column % BLOCK == 0:
                block = values[:, :, column : column + BLOCK].reshape(count * rows, BLOCK)
                chosen = round_values(block, by_row, four_over_six)[1].reshape(count, rows)
                scales[:, :, column // BLOCK] = chosen
                step = chosen.float() / scale.unsqueeze(1)
                encode = torch.where(step == 0, torch.zeros_like(step), 1.0 / step)
            own = values[:, :, column]
            code = codes[:, :, column] = round_e2m1(own * encode)
            error = errors[:, :, column - first] = (own - code * step) / factor[:, column, column].unsqueeze(1)
            values[:, :, column + 1 : stop] -= error.unsqueeze(2) * factor[:, column, column + 1 : stop].unsqueeze(1)
        values[:, :, stop:] -= errors @ factor[:, first:stop, stop:]
    return [Nvfp4Tensor(pack(codes[n]), scales[n], scale[n], columns) for n in range(count)]


def _factor(second: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse: what an error in one column costs in those after it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _damped(second: torch.Tensor, share: float) -> torch.Tensor:
    mean = second.diagonal().mean().clamp_min(1e-12)
    return second + share * mean * torch.eye(second.shape[0], dtype=second.dtype, device=second.device)
