"""What twins need to know of a layer of experts, its weights, and the rows of a step with what the router chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

__all__ = ["ExpertRows", "ExpertShape", "ExpertWeights", "ExpertsLayer"]


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Sizes of a layer's experts on this rank.

    Attributes:
        experts: how many lie on this rank.
        hidden: inputs and outputs of an expert.
        inner: inputs of its second product.
        gated: its first product has a gate and an up part, ``2 * inner`` outputs, gate first; else ``inner`` outputs.
        chosen: experts of a row.
    """

    experts: int
    hidden: int
    inner: int
    gated: bool
    chosen: int

    @property
    def up(self) -> int:
        """Outputs of the first product."""
        return 2 * self.inner if self.gated else self.inner

    @property
    def numel(self) -> int:
        """Weights of all experts."""
        return self.experts * self.hidden * (self.up + self.inner)

    @property
    def work(self) -> int:
        """Multiplications of a row."""
        return self.chosen * self.hidden * (self.up + self.inner)


class ExpertWeights(NamedTuple):
    """Exact weights, as vLLM loads them.

    Attributes:
        up: ``[E, U, H]``, the first product's (vLLM's ``w13``).
        down: ``[E, H, I]``, the second product's (vLLM's ``w2``).
        up_bias: ``[E, U]``.
        down_bias: ``[E, H]``.
    """

    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def on(self, device: torch.device, copy: bool = False) -> ExpertWeights:
        """The weights on ``device``; those that are there already without ``copy``."""
        return ExpertWeights(*(each if each is None else each.to(device, copy=copy) for each in self))


class ExpertRows(NamedTuple):
    """Rows of a step.

    Attributes:
        x: ``[M, H]``.
        weights: float32 ``[M, T]``, of the chosen experts' outputs.
        ids: integers ``[M, T]``, the chosen experts among those of all ranks; negative: none.
    """

    x: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor

    def take(self, index: torch.Tensor) -> ExpertRows:
        """The rows ``index``."""
        return ExpertRows(*(each.index_select(0, index) for each in self))


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsLayer:
    """A layer of experts but for its weights.

    Attributes:
        prefix: its full name.
        shape: on this rank.
        activation: between the two products, ``[R, U]`` to ``[R, I]`` in the same dtype.
        weight_on_input: the router's weight multiplies an expert's input, not its output.
        expert_map: gives the number on this rank of each expert of all ranks, ``[global]``, negative for others';
            ``None`` where this rank has all of them.
        own: the engine's own description of the layer, for its kernels.
    """

    prefix: str
    shape: ExpertShape
    activation: Callable[[torch.Tensor], torch.Tensor]
    weight_on_input: bool = False
    expert_map: Callable[[], torch.Tensor | None] = lambda: None
    own: Any = None
