"""NVFP4: E2M1 in blocks of 16 with E4M3 block scales below one global scale.

Weights and activations each have one global scale, as vLLM's kernels take it. That of a weight follows from its
values. That of a layer's activations is a power of two fixed before the first request, so that no row's rounding
depends on another's: from a calibration, or 1 without one. Emulation and kernels compute the same.
"""

from __future__ import annotations

import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.twins.emulated import EmulatedTwin, Rounding
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin

__all__ = ["FORMAT", "Nvfp4Format"]


class Nvfp4Format(Format):
    """See the module."""

    name = NumberFormat.NVFP4

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """See :func:`mixquant_agents.quant.numerics.nvfp4.quantize`; with a global scale of 1."""
        return nvfp4.dequantize(nvfp4.quantize(x, torch.ones((), device=x.device)))

    def reference_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """With one global scale."""
        return nvfp4.dequantize(nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight)))

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return nvfp4.split_scaled(x, torch.ones((), device=x.device))

    def split_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        return nvfp4.split_tensor(weight)

    def split_adopted(self, weight: nvfp4.Nvfp4Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        unscaled = weight._replace(global_scale=torch.ones_like(weight.global_scale))
        return nvfp4.dequantize(unscaled), 1.0 / weight.global_scale

    def emulated(self, name: str, *, weight_only: bool, recipe: Recipe) -> EmulatedTwin:
        """See :class:`~mixquant_agents.quant.formats.base.Format`."""
        rounding = Rounding(
            _split_weight_4_6 if recipe.weight_scales == "4/6" else _split_weight,
            None if weight_only else self.split_rows,
            self.split_adopted,
            scaled=_split_scaled_4_6 if recipe.activation_scales == "4/6" else nvfp4.split_scaled,
            residual_channels=recipe.residual_channels,
        )
        return EmulatedTwin(name, rounding, variant=recipe.weight_rounding)

    def native(self, name: str, *, recipe: Recipe) -> Nvfp4Twin:
        """Through vLLM's kernels."""
        return Nvfp4Twin(name, recipe=recipe)


def _split_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nvfp4.split_tensor(weight)


def _split_weight_4_6(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nvfp4.split_tensor(weight, four_over_six=True)


def _split_scaled_4_6(x: torch.Tensor, global_scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return nvfp4.split_scaled(x, global_scale, four_over_six=True)


FORMAT = Nvfp4Format()
