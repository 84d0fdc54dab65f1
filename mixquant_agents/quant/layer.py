"""What the runtime needs of a routed layer, whatever kind it is."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from mixquant_agents.precision.resolve import RoutedFormat
from mixquant_agents.quant.twins.base import Twin

__all__ = ["RoutedLayer"]


class RoutedLayer(Protocol):
    """A layer whose rows are routed between its exact weight and a twin.

    Attributes:
        prefix: the layer's full name.
        layer_format: how its quantized rows run; ``None``: every row stays exact.
    """

    prefix: str
    layer_format: RoutedFormat | None

    @property
    def weight(self) -> torch.Tensor:
        """The exact weight, once it is loaded."""

    @property
    def twin(self) -> Twin[Any]:
        """The twin in use. Raises ``ValueError`` where every row stays exact."""

    @property
    def state(self) -> Any:
        """What the twin in use keeps of the weight."""

    @property
    def twin_bytes(self) -> int:
        """Bytes of all twins of this layer."""

    def use(self, layer_format: RoutedFormat | None) -> None:
        """Route as ``layer_format`` says from now on; its twin is built if it is not there yet."""
