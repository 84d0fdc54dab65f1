"""Formats by name, and the twin of a layer's format."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat, PartFormats, RoutedFormat
from mixquant_agents.quant.formats.base import Format
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.emulated import EmulatedTwin
from mixquant_agents.quant.twins.parts import PartsTwin, segments

__all__ = ["emulated_twin", "format_of", "nested_twin", "reference_twin", "twin_of"]


def format_of(name: NumberFormat) -> Format:
    """The quantized format ``name``, from the module of that name beside this one."""
    module = importlib.import_module(f"{__package__}.{name.value}")
    number_format: Format = module.FORMAT
    return number_format


def twin_of(layer_format: RoutedFormat, widths: Sequence[int] = ()) -> Twin[Any]:
    """The twin by which a layer of this format runs its quantized rows; one object for each.

    Args:
        layer_format: of the layer.
        widths: outputs of the layer's parts, where their formats differ.

    Raises:
        FormatRefusedError: there is no native form of a format, or the layer has not as many parts as it has formats.
    """
    return _twin_of(layer_format, tuple(widths) if isinstance(layer_format, PartFormats) else ())


@functools.cache
def _twin_of(layer_format: RoutedFormat, widths: tuple[int, ...]) -> Twin[Any]:
    if isinstance(layer_format, PartFormats):
        return PartsTwin(layer_format.name, segments(layer_format, widths, twin_of))
    if layer_format.nested:
        return nested_twin(layer_format)
    if layer_format.emulated:
        return emulated_twin(layer_format)
    return format_of(layer_format.number_format).native(layer_format.name, recipe=layer_format.recipe)


@functools.cache
def nested_twin(layer_format: LayerFormat) -> Twin[Any]:
    """The twin that lies within the exact weight.

    Raises:
        FormatRefusedError: the layer's format has none.
    """
    return format_of(layer_format.number_format).nested(layer_format.name, emulated=layer_format.emulated)


def reference_twin(layer_format: LayerFormat) -> Twin[Any]:
    """The twin that computes what the layer's own computes, in wide arithmetic."""
    emulated = dataclasses.replace(layer_format, emulated=True)
    return nested_twin(emulated) if layer_format.nested else emulated_twin(emulated)


@functools.cache
def emulated_twin(layer_format: LayerFormat) -> EmulatedTwin:
    """The twin that computes the layer's format in wide arithmetic, beside the exact weight."""
    number_format = format_of(layer_format.number_format)
    return number_format.emulated(layer_format.name, weight_only=layer_format.weight_only, recipe=layer_format.recipe)
