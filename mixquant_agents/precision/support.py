"""How a device runs a number format: natively, emulated, or not at all, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixquant_agents.precision.formats import FORMATS, NumberFormat

__all__ = ["DeviceInfo", "FormatStatus", "Support", "format_support", "nested_support", "nests_by_default"]

_NESTED_KERNELS = ((8, 9), (9, 0))
"""CUDA compute capabilities for which there is a product with nested weights: Ada and Hopper."""

_NESTED_BY_DEFAULT: tuple[tuple[int, int], ...] = ()
"""Capabilities on which nested storage was measured to be no slower than separate copies, in anything."""

Support = Literal["native", "emulated", "refused"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What matters of a device.

    Attributes:
        kind: ``"cpu"``, ``"cuda"``, or another platform's name.
        name: for people, for example ``"NVIDIA H100 80GB HBM3"``.
        capability: CUDA compute capability, ``(9, 0)`` for Hopper; ``None`` elsewhere.
    """

    kind: str
    name: str
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FormatStatus:
    """How a device runs a format, and why not better. ``reason`` is ``None`` for native ones."""

    status: Support
    reason: str | None = None


def format_support(number_format: NumberFormat, device: DeviceInfo) -> FormatStatus:
    """How ``device`` runs ``number_format`` (any but ``AUTO``) in Linear layers."""
    if number_format is NumberFormat.EXACT:
        return FormatStatus("native")
    spec = FORMATS[number_format]
    if device.kind == "cpu":
        return FormatStatus("emulated", f"a CPU has no {number_format.value.upper()} arithmetic")
    if device.kind != "cuda" or device.capability is None:
        return FormatStatus("refused", f"{device.name} ({device.kind}) is not supported; use CUDA or a CPU")
    if spec.is_native(device.capability):
        return FormatStatus("native")
    capability = ".".join(map(str, device.capability))
    return FormatStatus("emulated", f"{device.name} (compute {capability}) {spec.lacking}")


def nested_support(number_format: NumberFormat, device: DeviceInfo) -> FormatStatus:
    """How ``device`` runs exact weights that hold twins in ``number_format`` (any but ``AUTO``)."""
    if number_format is not NumberFormat.FP8:
        return FormatStatus("refused", f"it holds FP8 twins, and prefill_format is {number_format.value!r} here")
    if device.kind == "cpu":
        return FormatStatus("emulated", "a CPU has no FP8 arithmetic")
    if device.kind == "cuda" and device.capability in _NESTED_KERNELS:
        return FormatStatus("native")
    capability = "" if device.capability is None else f" (compute {'.'.join(map(str, device.capability))})"
    return FormatStatus("refused", f"{device.name}{capability} has no product with nested weights; Ada and Hopper have")


def nests_by_default(number_format: NumberFormat, device: DeviceInfo) -> bool:
    """Whether ``storage="auto"`` nests ``number_format`` on ``device``."""
    return number_format is NumberFormat.FP8 and device.kind == "cuda" and device.capability in _NESTED_BY_DEFAULT
