"""NVFP4: E2M1 in blocks of 16 with E4M3 block scales below one global scale.

A weight has one global scale, as vLLM's kernels want it; activations have a power of two per row, so that no row's
rounding depends on another's.
"""

from __future__ import annotations

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin

__all__ = ["FORMAT", "Nvfp4Format"]


class Nvfp4Format(Format):
    """See the module."""

    name = NumberFormat.NVFP4

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`mixquant_agents.quant.numerics.nvfp4.quantize`."""
        return nvfp4.dequantize(nvfp4.quantize(x, nvfp4.row_global_scale(x)))

    def reference_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """With one global scale."""
        return nvfp4.dequantize(nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight)))

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return nvfp4.split_rows(x)

    def split_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return nvfp4.split_tensor(weight)

    def split_adopted(self, weight: nvfp4.Nvfp4Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        unscaled = weight._replace(global_scale=torch.ones_like(weight.global_scale))
        return nvfp4.dequantize(unscaled), 1.0 / weight.global_scale

    def native(self) -> Nvfp4Twin:
        """Through vLLM's kernels."""
        return Nvfp4Twin()


FORMAT = Nvfp4Format()
