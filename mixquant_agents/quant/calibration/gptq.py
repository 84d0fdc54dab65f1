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
from mixquant_agents.quant.numerics.nvfp4 import BLOCK, Nvfp4Tensor, block_scales, round_values, tensor_global_scale

__all__ = ["gptq", "moved"]

_TOPS = (6.0, 4.0, 4.5, 5.0, 5.5, 6.5, 7.0, 8.0)
"""What a sweep lets a block's largest magnitude become; beyond 6 it saturates, and the other values round finer."""

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
    weights: torch.Tensor,
    second: torch.Tensor,
    *,
    four_over_six: bool = False,
    sweep: bool = False,
    ordered: bool = False,
    damping: float = 0.01,
) -> list[Nvfp4Tensor]:
    """Round ``L`` weights of one shape side by side, since a column's work alone is too little for a GPU.

    Args:
        weights: ``[L, N, K]``, any float dtype, K a multiple of 16; not changed.
        second: second moments of their inputs, ``[L, K, K]``.
        four_over_six: see :func:`~mixquant_agents.quant.numerics.nvfp4.round_values`.
        sweep: a block's scale is the one of several that loses least, each column weighed by what its error costs
            after those behind it have made up for it; instead of ``four_over_six``.
        ordered: blocks are reached by falling energy of their inputs, not from left to right.
        damping: of the mean of the diagonal, added to it.
    """
    values = weights.float().clone()
    count, rows, columns = values.shape
    four_over_six = four_over_six or sweep  # leaves room for larger scales
    order = _by_energy(second) if ordered else None
    if order is not None:
        values = values.gather(2, order.unsqueeze(1).expand(values.shape))
        second = torch.stack([each[own][:, own] for each, own in zip(second, order, strict=True)])
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
                if sweep:
                    costs = factor.diagonal(dim1=1, dim2=2)[:, column : column + BLOCK].square().reciprocal()
                    choices = _swept(block, by_row, costs.repeat_interleave(rows, 0)).reshape(count, rows)
                else:
                    choices = round_values(block, by_row, four_over_six)[1].reshape(count, rows)
                scales[:, :, column // BLOCK] = choices
                step = choices.float() / scale.unsqueeze(1)
                encode = torch.where(step == 0, torch.zeros_like(step), 1.0 / step)
            own = values[:, :, column]
            code = codes[:, :, column] = round_e2m1(own * encode)
            error = errors[:, :, column - first] = (own - code * step) / factor[:, column, column].unsqueeze(1)
            values[:, :, column + 1 : stop] -= error.unsqueeze(2) * factor[:, column, column + 1 : stop].unsqueeze(1)
        values[:, :, stop:] -= errors @ factor[:, first:stop, stop:]
    if order is not None:
        back = order.argsort(1)
        codes = codes.gather(2, back.unsqueeze(1).expand(codes.shape))
        blocks = back[:, ::BLOCK] // BLOCK
        by_block = scales.view(torch.uint8).gather(2, blocks.unsqueeze(1).expand(scales.shape))
        scales = by_block.view(torch.float8_e4m3fn)
    return [Nvfp4Tensor(pack(codes[n]), scales[n], scale[n], columns) for n in range(count)]


def _by_energy(second: torch.Tensor) -> torch.Tensor:
    """Columns ``[L, K]``, whole blocks of 16 by falling energy."""
    energy = second.diagonal(dim1=1, dim2=2).float().unflatten(1, (-1, BLOCK)).sum(2)
    first = energy.argsort(1, descending=True).unsqueeze(2) * BLOCK
    return (first + torch.arange(BLOCK, device=second.device)).flatten(1)


def _swept(block: torch.Tensor, global_scale: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """E4M3 scales ``[R, 1]`` of blocks ``[R, 16]`` that leave the smallest squared error, weighed by ``costs``."""
    parts = block.unsqueeze(1)
    peak = parts.abs().amax(2, keepdim=True)
    best, least = torch.zeros(block.shape[0], 1, device=block.device), None
    for top in _TOPS:
        scales, factor = block_scales(peak, global_scale, top)
        grid = round_e2m1(parts * factor) * scales.float() / global_scale.unsqueeze(-1)
        loss = ((grid - parts).square() * costs.unsqueeze(1)).sum(2)
        better = torch.ones_like(loss, dtype=torch.bool) if least is None else loss < least
        best = torch.where(better, scales.squeeze(2).float(), best)
        least = loss if least is None else torch.minimum(loss, least)
    return best.to(torch.float8_e4m3fn)


def _factor(second: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse: what an error in one column costs in those after it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _damped(second: torch.Tensor, share: float) -> torch.Tensor:
    mean = second.diagonal().mean().clamp_min(1e-12)
    return second + share * mean * torch.eye(second.shape[0], dtype=second.dtype, device=second.device)
