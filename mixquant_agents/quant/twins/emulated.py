"""Emulated twins run anywhere: the weight on its grid in a dtype that holds the grid exactly, multiplied in wide
arithmetic, scales put on afterwards, as tensor cores do. They cost more than the exact product and exist to show what a
format does to answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.twins.base import Twin

__all__ = ["EmulatedTwin", "Grid", "Split"]

Split = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""``[R, K]`` to values on the format's grid (float32 ``[R, K]``) and what each row is to be multiplied by
(float32 ``[R, 1]`` or ``[]``)."""


class Grid(NamedTuple):
    """A weight on its grid.

    Attributes:
        grid: ``[N, K]`` in float32, or bfloat16 for bfloat16 layers, which holds every grid here exactly.
        scale: float32 ``[N]`` or ``[]``; multiplies the product.
    """

    grid: torch.Tensor
    scale: torch.Tensor

    def split(self, rows: Sequence[int]) -> list[Grid]:
        """Of a weight made of several, one below the other, the grids of each; ``rows`` says how many each has."""
        scales = self.scale.split(list(rows)) if self.scale.ndim else [self.scale] * len(rows)
        return [Grid(grid, scale) for grid, scale in zip(self.grid.split(list(rows)), scales, strict=True)]


class EmulatedTwin(Twin[Grid]):
    """Grid values multiplied in a wide dtype; scales applied to the product."""

    def __init__(
        self,
        name: str,
        weight: Split,
        rows: Split | None,
        adopt: Callable[[Nvfp4Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            weight: splits weights.
            rows: splits activations; ``None`` leaves them as they are (weight-only).
            adopt: splits a weight that was quantized before, or refuses it.
        """
        self.name = name
        self._weight = weight
        self._rows = rows
        self._adopt = adopt

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._weight

    @staticmethod
    def _wide(dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; one scale for each row at most."""
        return n * k * int(self._wide(dtype).itemsize) + 4 * n

    def build(self, weight: torch.Tensor) -> Grid:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._grid(self._weight(weight), weight.dtype)

    def adopt(self, weight: Nvfp4Tensor, dtype: torch.dtype) -> Grid:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return self._grid(self._adopt(weight), dtype)

    def _grid(self, split: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> Grid:
        grid, scale = split
        return Grid(grid.to(self._wide(dtype)).contiguous(), scale.flatten() if scale.ndim else scale)

    def tensors(self, state: Grid) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return state._asdict()

    def product(
        self, source: RowSource, state: Grid, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        x, (grid, scale) = source.rows_with(exact), state
        if self._rows is None:
            product = linear(x.to(grid.dtype), grid).float().mul_(scale)
        else:
            rows, row_scale = self._rows(x)
            product = linear(rows.to(grid.dtype), grid).float()
            product = product.mul_(row_scale).mul_(scale) if scale.ndim else product.mul_(row_scale * scale)
        out = product.to(x.dtype)
        return out if bias is None else out + bias
