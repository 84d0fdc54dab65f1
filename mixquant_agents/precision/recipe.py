"""How weights and activations are rounded to NVFP4, beyond taking the nearest value: the parts of a recipe. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["FIRST_TOKENS", "PLAIN", "BlockScales", "ChannelScales", "Recipe", "WeightRounding"]

BlockScales = Literal["max", "4/6"]
"""``"max"``: a block's largest magnitude becomes 6, the largest E2M1 value. ``"4/6"``: 6 or 4, whichever leaves the
smaller squared error (arXiv 2512.02010)."""

WeightRounding = Literal["nearest", "gptq", "gptq-behind"]
"""``"gptq"``: column by column, each column's error carried on to those after it by the inputs' second moments (arXiv
2210.17323). Needs a calibration. ``"gptq-behind"``: by those of tokens behind the first 16 alone, for policies that
keep these exact: a prompt's first tokens are unlike all others, and rounding that suits them suits others less."""

ChannelScales = Literal["none", "balanced"]
"""``"balanced"``: input channels are multiplied by powers of two before they are quantized, and the twin's weight is
divided by them, so that no channel of a block drowns the others (as SmoothQuant, arXiv 2211.10438, and AWQ, 2306.00978,
do). Which powers, each layer's calibration finds by its own error. Exact rows never see them."""

FIRST_TOKENS = 16
"""So many tokens of a prompt are left out of what ``"gptq-behind"`` rounds by."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What of a layer's rounding the policy singles out. The defaults are the plain form.

    Attributes:
        weight_rounding: how values of the twin are rounded.
        weight_scales: how block scales of the twin are chosen.
        channel_scales: what input channels are multiplied by before they are quantized; needs a calibration.
        activation_scales: how block scales of activations are chosen.
        residual_channels: for so many input channels, those with the largest activations, what rounding leaves is
            rounded too and multiplied once more (arXiv 2601.07475). Emulated; needs a calibration.
    """

    weight_rounding: WeightRounding = "nearest"
    weight_scales: BlockScales = "max"
    activation_scales: BlockScales = "max"
    residual_channels: int = 0
    channel_scales: ChannelScales = "none"

    @property
    def needs_calibration(self) -> bool:
        """Whether the model's own activations have to be seen first."""
        return self.weight_rounding != "nearest" or self.residual_channels > 0 or self.channel_scales != "none"

    @property
    def uncalibrated(self) -> Recipe:
        """What of it can be done for a layer that no calibration knows."""
        return replace(self, weight_rounding="nearest", residual_channels=0, channel_scales="none")

    @property
    def without_kernel(self) -> str | None:
        """The setting that no kernel here computes; ``None``: the native path computes all of it."""
        return f"residual_channels={self.residual_channels}" if self.residual_channels else None

    @property
    def of_activations(self) -> str | None:
        """A setting that is about activations alone; ``None``: there is none."""
        if self.activation_scales != "max":
            return f"activation_scales={self.activation_scales!r}"
        return self.without_kernel

    @property
    def name(self) -> str:
        """What differs from the plain form, for example ``"-gptq-w46"``; empty for the plain one."""
        parts = [
            "" if self.weight_rounding == "nearest" else f"-{self.weight_rounding}",
            "-w46" if self.weight_scales == "4/6" else "",
            "-a46" if self.activation_scales == "4/6" else "",
            f"-r{self.residual_channels}" if self.residual_channels else "",
            "" if self.channel_scales == "none" else f"-{self.channel_scales}",
        ]
        return "".join(parts)


PLAIN = Recipe()
