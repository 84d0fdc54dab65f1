"""FP8: E4M3 codes with one float32 scale per row (OCP 8-bit FP v1.0)."""

from __future__ import annotations

from typing import Any

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import PLAIN
from mixquant_agents.quant.formats.rowwise import RowwiseFormat
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.nested import EmulatedNestedTwin, NestedTwin

__all__ = ["FORMAT", "Fp8Format"]

PRODUCTS = ("torch", "cutlass")
"""``torch`` runs shapes that were not measured: it was ahead on every one of an 8B model."""


class Fp8Format(RowwiseFormat):
    """The one format that nests: BF16 is E4M3 and four bits more."""

    def nested(self, name: str, *, emulated: bool) -> Twin[Any]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        if emulated:
            return EmulatedNestedTwin(name, self.emulated(name, weight_only=False, recipe=PLAIN))
        return NestedTwin(name, *PRODUCTS)


FORMAT = Fp8Format(NumberFormat.FP8, torch.float8_e4m3fn, *PRODUCTS)
