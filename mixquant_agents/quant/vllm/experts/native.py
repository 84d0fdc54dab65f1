"""Which twin multiplies experts in a format's own arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.vllm.experts.kernels import RowwiseExperts
from mixquant_agents.quant.vllm.experts.nvfp4 import Nvfp4Experts

__all__ = ["native_experts"]


@functools.cache
def native_experts(layer_format: LayerFormat) -> ExpertsTwin[Any]:
    """The twin that multiplies experts in the format's own arithmetic; one object for each.

    Raises:
        FormatRefusedError: there is none.
    """
    if layer_format.number_format is NumberFormat.FP8:
        return RowwiseExperts(layer_format.name, torch.float8_e4m3fn)
    if layer_format.number_format is NumberFormat.INT8:
        return RowwiseExperts(layer_format.name, torch.int8)
    if layer_format.number_format is NumberFormat.NVFP4:
        return Nvfp4Experts(layer_format.name, layer_format.recipe)
    raise FormatRefusedError(
        f"experts have no native product in {layer_format.number_format.value} here: add 're:.*experts' to "
        "ignored_layers, or use policy 'mixquant-fp8'"
    )
