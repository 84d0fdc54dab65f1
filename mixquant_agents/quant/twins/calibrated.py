"""What a calibration knows of one Linear."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor

__all__ = ["UNCALIBRATED", "UNKNOWN", "LayerCalibration"]


class LayerCalibration(NamedTuple):
    """Of a weight ``[N, K]``.

    Attributes:
        activation_scale: the global scale of its inputs in NVFP4, a power of two; encodes.
        channels: int64 ``[C]``, input channels by falling largest magnitude; ``None``: not seen.
        twin: the weight rounded beforehand (GPTQ); ``None``: round the weight itself.
        nearest: a twin that wants one rounded beforehand takes nearest values instead, where there is none.
        channel_scale: float32 ``[K]``, powers of two: input channels are multiplied by them before they are quantized,
            and ``twin`` is of the weight divided by them; ``None``: by 1.
    """

    activation_scale: float = 1.0
    channels: torch.Tensor | None = None
    twin: Nvfp4Tensor | None = None
    nearest: bool = False
    channel_scale: torch.Tensor | None = None

    def divided(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight ``[N, K]`` that multiplies scaled channels."""
        scale = self.channel_scale
        return weight if scale is None else weight / scale.to(weight)


UNKNOWN = LayerCalibration(nearest=True)
"""Of a layer that a calibration in the cache does not know: sharded, renamed, or loaded anew."""

UNCALIBRATED = LayerCalibration()
"""A global scale of 1 neither saturates nor underflows where a block's largest magnitude is between 0.094 and 2,688."""
