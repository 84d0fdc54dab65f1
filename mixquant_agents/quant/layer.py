"""What the runtime needs of a routed layer, whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from mixquant_agents.precision.resolve import RoutedFormat

__all__ = ["KernelTrial", "RoutedLayer", "Tunable"]


class KernelTrial(Protocol):
    """One product of a layer, to be held against its reference.

    Attributes:
        key: format and shape; products of equal keys are equal.
        name: of the layer.
        kernel: vLLM's name of what computes it, where vLLM chose it.
        limit: the largest error of a row that is no fault.
    """

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def kernel(self) -> str | None: ...

    @property
    def limit(self) -> float: ...

    def error(self) -> float:
        """The largest error of a row, of its length; infinite where there is no number."""


class Tunable(Protocol):
    """A twin with something to choose on a device."""

    def tune(self, layers: list[Any]) -> None:
        """Choose by measuring. Called once."""

    def status(self) -> dict[str, Any]:
        """What was chosen, as plain JSON."""


class RoutedLayer(Protocol):
    """A layer whose rows are routed between its exact weight and a twin.

    Attributes:
        prefix: the layer's full name.
        layer_format: how its quantized rows run; ``None``: every row stays exact.
    """

    prefix: str
    layer_format: RoutedFormat | None

    @property
    def captured(self) -> bool:
        """Whether some rows run through a twin that captured graphs hold."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the exact weight: layers of one format and one shape run the same products."""

    @property
    def device(self) -> torch.device:
        """Where the exact weight lies, once it is loaded."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the exact weight, and of the rows."""

    @property
    def twin_bytes(self) -> int:
        """Bytes of all twins of this layer."""

    @property
    def reads_by_row(self) -> bool:
        """Whether exact rows read more of the weights the more they are: each its own experts'."""

    def use(self, layer_format: RoutedFormat | None) -> None:
        """Route as ``layer_format`` says from now on; its twin is built if it is not there yet."""

    def trials(self) -> Iterator[KernelTrial]:
        """The products of the twin in use; none where every row stays exact."""

    def tuning(self) -> tuple[Tunable, Any]:
        """The twin in use, and what of this layer its ``tune`` takes."""

    def work(self, rows: Callable[[int], torch.Tensor]) -> Callable[[], object]:
        """What a step makes of this layer, as the step in force says; ``rows`` gives rows of a width, ``[M, K]``."""
