"""What a number format is to the plugin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.emulated import EmulatedTwin, Rounding

__all__ = ["Format"]


class Format(ABC):
    """A number format: what rounding to it means, and the twins that multiply in it. Stateless.

    A module of this package is named as its format and holds one instance, ``FORMAT``.
    """

    name: NumberFormat

    @abstractmethod
    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``[R, K]`` rounded as activations are, each row by itself: float32 ``[R, K]``. Plain, slow, and what
        everything else is compared with."""

    def reference_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` ``[N, K]`` rounded as weights are: float32 ``[N, K]``."""
        return self.reference(weight)

    @abstractmethod
    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`reference`, fast, as values on the format's grid, float32 ``[R, K]``, and what each row is to be
        multiplied by, float32 ``[R, 1]``. The sign of zero is free."""

    def split_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`reference_weight` likewise; its scale may be one for all rows, float32 ``[]``."""
        return self.split_rows(weight)

    def split_adopted(self, weight: Nvfp4Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Grid and scale of a weight that was quantized before.

        Raises:
            FormatRefusedError: this format takes none.
        """
        raise FormatRefusedError(f"{self.name.value} cannot use a prefill_checkpoint; leave it out")

    def emulated(self, name: str, *, weight_only: bool, recipe: Recipe) -> EmulatedTwin:
        """A twin that computes the format in wide arithmetic, on any device. ``recipe`` is NVFP4's."""
        rounding = Rounding(self.split_weight, None if weight_only else self.split_rows, self.split_adopted)
        return EmulatedTwin(name, rounding)

    def nested(self, name: str, *, emulated: bool) -> Twin[Any]:
        """The twin that lies within the exact weight, native or emulated.

        Raises:
            FormatRefusedError: there is none.
        """
        raise FormatRefusedError(f"storage='nested' holds no twins in {self.name.value}; leave storage 'auto'")

    def native(self, name: str, *, recipe: Recipe) -> Twin[Any]:
        """The twin that multiplies in the format's own arithmetic.

        Raises:
            FormatRefusedError: there is none.
        """
        raise FormatRefusedError(
            f"{self.name.value} has no native product here; it runs emulated, or use policy 'mixquant-fp8'"
        )
