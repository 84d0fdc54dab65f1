"""Emulated twins of experts run anywhere: each expert's two products through the emulated twin of a Linear.

So every number format is a format of experts, too, rounded as in any other layer: weights expert by expert, rows before
each of the two products.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch

from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.reference import expert_by_expert
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.twins.emulated import EmulatedTwin, Grid

__all__ = ["EmulatedExperts", "ExpertGrids"]


class ExpertGrids(NamedTuple):
    """Of each expert on this rank, its two weights on their grids, and the exact biases."""

    up: tuple[Grid, ...]
    down: tuple[Grid, ...]
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


class EmulatedExperts(ExpertsTwin[ExpertGrids]):
    """Over the emulated twin of a Linear."""

    def __init__(self, twin: EmulatedTwin) -> None:
        self.name = twin.name
        self._twin = twin

    @property
    def build_key(self) -> Hashable:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return self._twin.build_key

    def nbytes(self, shape: ExpertShape, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        up = self._twin.nbytes(shape.up, shape.hidden, dtype)
        return shape.experts * (up + self._twin.nbytes(shape.hidden, shape.inner, dtype))

    def build(self, weights: ExpertWeights, layer: ExpertsLayer) -> ExpertGrids:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        up, down = (tuple(map(self._twin.build, each)) for each in (weights.up, weights.down))
        return ExpertGrids(up, down, weights.up_bias, weights.down_bias)

    def adopt(
        self, up: Sequence[Nvfp4Tensor], down: Sequence[Nvfp4Tensor], weights: ExpertWeights, layer: ExpertsLayer
    ) -> ExpertGrids:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        dtype = weights.up.dtype
        up_grids, down_grids = (tuple(self._twin.adopt(expert, dtype) for expert in each) for each in (up, down))
        return ExpertGrids(up_grids, down_grids, weights.up_bias, weights.down_bias)

    def tensors(self, state: ExpertGrids) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`: the exact biases are the layer's."""
        return {
            f"{part}{expert}_{name}": tensor
            for part, grids in (("up", state.up), ("down", state.down))
            for expert, grid in enumerate(grids)
            for name, tensor in self._twin.tensors(grid).items()
        }

    def product(self, rows: ExpertRows, state: ExpertGrids, layer: ExpertsLayer) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""

        def of(grids: tuple[Grid, ...], biases: torch.Tensor | None, expert: int, x: torch.Tensor) -> torch.Tensor:
            return self._twin.product(PlainRows(x), grids[expert], None if biases is None else biases[expert])

        return expert_by_expert(
            rows,
            layer,
            lambda expert, x: of(state.up, state.up_bias, expert, x),
            lambda expert, x: of(state.down, state.down_bias, expert, x),
        )
