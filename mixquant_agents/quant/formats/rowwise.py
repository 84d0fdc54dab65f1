"""What formats of 8-bit codes with one scale per row have in common."""

from __future__ import annotations

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.numerics import rowwise
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

__all__ = ["RowwiseFormat"]


class RowwiseFormat(Format):
    """Codes of one dtype, one float32 scale per output channel of a weight and per token of an activation."""

    def __init__(self, name: NumberFormat, dtype: torch.dtype, *products: str) -> None:
        """``dtype`` of the codes; ``products``: see :class:`~mixquant_agents.quant.twins.rowwise.RowwiseTwin`."""
        self.name = name
        self.dtype = dtype
        self._products = products

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`mixquant_agents.quant.numerics.rowwise.quantize`."""
        return rowwise.dequantize(*rowwise.quantize(x, self.dtype))

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return rowwise.split(x, self.dtype)

    def native(self, name: str, *, recipe: Recipe) -> RowwiseTwin:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return RowwiseTwin(name, self.dtype, *self._products)
