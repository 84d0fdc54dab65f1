"""How a device runs a number format: natively, emulated, or not at all, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixquant_agents.precision.formats import FORMATS, NumberFormat

__all__ = ["DeviceInfo", "FormatStatus", "Support", "format_support"]

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
