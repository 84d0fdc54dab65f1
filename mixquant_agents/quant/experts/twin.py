"""The whole seam of a twin of a layer of experts; :class:`~mixquant_agents.quant.twins.base.Twin` is that of a Linear.

The router is no part of it: what it chose comes with the rows. A twin's rows never depend on each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor

__all__ = ["ExpertsTwin"]

State = TypeVar("State")
"""What a twin keeps of one layer's weights: known to the twin alone."""


class ExpertsTwin(ABC, Generic[State]):
    """One way to run a layer of experts in a number format. It has no weights of its own."""

    captured: bool = False
    """The product can be held by CUDA graphs; others are chosen among in Python at each step."""

    name: str
    """For messages, for example ``"fp8-native"``."""

    @property
    def build_key(self) -> Hashable:
        """Twins with equal keys build equal states, so that a layer keeps one of them."""
        return self.name

    def prepare(self, layer: ExpertsLayer) -> None:
        """Called before weights are read.

        Raises:
            FormatRefusedError: the device lacks what the twin needs, or the layer's shape is none of its.
        """

    @abstractmethod
    def nbytes(self, shape: ExpertShape, dtype: torch.dtype) -> int:
        """Bytes of the state of weights of ``dtype``."""

    @abstractmethod
    def build(self, weights: ExpertWeights, layer: ExpertsLayer) -> State:
        """The state of ``weights``, which are not changed."""

    def adopt(
        self, up: Sequence[Nvfp4Tensor], down: Sequence[Nvfp4Tensor], weights: ExpertWeights, layer: ExpertsLayer
    ) -> State:
        """The state with exactly the values of weights that were quantized before, one of each for each expert.

        Raises:
            FormatRefusedError: this twin takes none.
        """
        raise FormatRefusedError(f"{self.name!r} cannot use a prefill_checkpoint; leave it out")

    @abstractmethod
    def tensors(self, state: State) -> Mapping[str, torch.Tensor]:
        """All tensors of ``state`` by name."""

    def renew(self, state: State, values: State) -> None:
        """Give ``state`` the values of ``values``, both built here, where its tensors lie: captured graphs read it."""
        fresh = self.tensors(values)
        for name, tensor in self.tensors(state).items():
            tensor.copy_(fresh[name])

    @abstractmethod
    def product(self, rows: ExpertRows, state: State, layer: ExpertsLayer) -> torch.Tensor:
        """``[M, H]`` in the rows' dtype: what this rank's experts add to each row."""

    def tune(self, layers: Sequence[tuple[ExpertsLayer, State]]) -> None:
        """Choose by measuring what can be chosen on this device. Called once."""

    def status(self) -> dict[str, Any]:
        """What was chosen, as plain JSON."""
        return {}
