"""The whole seam of a twin: a weight's quantized copy, how it is made, and how rows pass through it.

Tensor parallelism: a twin is built from the weight's own shard, so it is sharded as the weight is. NVFP4's tensor
scale, and for row-parallel layers the FP8 and INT8 channel scales, then belong to the shard: finer than unsharded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.nn.functional import linear

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.ops.sources import ExactRows, RowSource
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration

__all__ = ["Twin"]

State = TypeVar("State")
"""What a twin keeps of one weight: known to the twin alone."""


class Twin(ABC, Generic[State]):
    """One way to run a Linear in a number format.

    A twin has no weights of its own: what it makes of one weight is the ``State`` that :meth:`build` returns, opaque to
    all others.
    """

    captured: bool = False
    """The product runs as one operation that CUDA graphs can hold; others are chosen among in Python at each step."""

    holds_exact: bool = False
    """The state holds the exact weight too, so that the layer keeps no other copy of it (see :meth:`operand`)."""

    name: str
    """For messages, for example ``"fp8-native"``."""

    @property
    def build_key(self) -> Hashable:
        """Twins with equal keys build equal states of a weight, so that a layer keeps one of them."""
        return self.name

    def prepare(self) -> None:
        """Called before weights are read.

        Raises:
            FormatRefusedError: the device lacks what the twin needs.
        """

    def check(self, n: int, k: int, prefix: str) -> None:
        """Called before weights are read, for a layer of ``[N, K]``.

        Raises:
            FormatRefusedError: the products do not take the shape; names the layer ``prefix`` and what to do.
        """

    @abstractmethod
    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """Bytes of the state of an ``[N, K]`` weight of ``dtype``."""

    @abstractmethod
    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> State:
        """The state of ``weight`` ``[N, K]`` (any float dtype; it is not changed).

        Raises:
            FormatRefusedError: it takes more of a calibration than there is.
        """

    def adopt(self, weight: Nvfp4Tensor, dtype: torch.dtype, calibration: LayerCalibration = UNCALIBRATED) -> State:
        """The state with exactly the values of a weight that was quantized before, for a layer of ``dtype``.

        Raises:
            FormatRefusedError: this twin takes none, or not such a one.
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
    def product(
        self, source: RowSource, state: State, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """The rows of ``source`` ``[M, K]`` times the twin: ``[M, N]`` in their dtype. Rows never depend on each other.

        Where ``exact`` is given, its rows are filled with unquantized ones on the way.
        """

    def operand(self, weight: torch.Tensor, state: State) -> torch.Tensor:
        """What a layer keeps as its weight, ``[N, K]``: routed operations get it, and find the twin by it."""
        return weight

    def exact_weight(self, weight: torch.Tensor, state: State) -> torch.Tensor:
        """The exact weight ``[N, K]``, given the operand; made anew at each call where the operand is another."""
        return weight

    def exact(
        self, rows: torch.Tensor, weight: torch.Tensor, state: State, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``rows`` ``[M, K]`` times the exact weight, given the operand: ``[M, N]``."""
        return linear(rows, weight, bias)

    def few_rows(self, source: RowSource, state: State, bias: torch.Tensor | None = None) -> torch.Tensor:
        """:meth:`product` for a draft of few rows, where reading the weight is all that takes time: the rows need not
        be quantized."""
        return self.product(source, state, bias)

    def tune_few_rows(self, layers: Sequence[tuple[torch.Tensor, State]]) -> None:
        """Choose what :meth:`few_rows` can choose on this device. Called once for a shape.

        Raises:
            FormatRefusedError: the product is wrong on this device.
        """

    def tune(self, layers: Sequence[tuple[torch.Tensor, State]], most_rows: int | None = None) -> None:
        """Choose by measuring what can be chosen on this device, on exact weights and their states, for at most
        ``most_rows`` rows. Called once for a shape."""

    def status(self) -> dict[str, Any]:
        """What was chosen, as plain JSON."""
        return {}
