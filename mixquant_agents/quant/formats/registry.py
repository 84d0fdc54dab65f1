"""Formats by name, and the twin of a layer's format."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.emulated import EmulatedTwin

__all__ = ["emulated_twin", "format_of", "twin_of"]


def format_of(name: NumberFormat) -> Format:
    """The quantized format ``name``, from the module of that name beside this one."""
    module = importlib.import_module(f"{__package__}.{name.value}")
    number_format: Format = module.FORMAT
    return number_format


@functools.cache
def twin_of(layer_format: LayerFormat) -> Twin[Any]:
    """The twin by which a layer of this format runs its quantized rows; one object for each.

    Raises:
        FormatRefusedError: there is no native form of the format.
    """
    if layer_format.emulated:
        return emulated_twin(layer_format)
    return format_of(layer_format.number_format).native()


@functools.cache
def emulated_twin(layer_format: LayerFormat) -> EmulatedTwin:
    """The twin that computes the layer's format in wide arithmetic."""
    number_format = format_of(layer_format.number_format)
    return number_format.emulated(layer_format.name, weight_only=layer_format.weight_only)
