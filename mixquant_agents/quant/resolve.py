"""From what the policy asks to what this device does: native, emulated, or refused with the reason. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixquant_agents.config import NumberFormat, PrecisionPolicy
from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.plan import RowRule

__all__ = ["DeviceInfo", "FormatStatus", "ResolvedPolicy", "Support", "format_support", "resolve"]

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


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """A policy on a device.

    Attributes:
        policy: what was asked for.
        prefill_format, decode_format: what runs; ``AUTO`` no more.
        emulated: quantized rows are computed in wide arithmetic on rounded values. Never faster than exact.
        exact_last_token: the last prompt token runs exact.
        row_threshold: a step with at most so many rows runs exact; ``None``: to be measured on the device.
        reason: why ``auto`` chose exact, or why the format is emulated.
    """

    policy: PrecisionPolicy
    prefill_format: NumberFormat
    decode_format: NumberFormat
    emulated: bool
    exact_last_token: bool
    row_threshold: int | None
    reason: str | None

    @property
    def quantizes(self) -> bool:
        """Whether any row may be quantized."""
        return self.prefill_format is not NumberFormat.EXACT

    def rule(self, measured_threshold: int = 0, mixed_threshold: int = 0) -> RowRule:
        """The row rule; ``measured_threshold`` stands in where the policy left it to measurement."""
        return RowRule(
            prefill=self.quantizes,
            last=self.quantizes and not self.exact_last_token,
            decode=self.decode_format is not NumberFormat.EXACT,
            threshold=measured_threshold if self.row_threshold is None else self.row_threshold,
            mixed=mixed_threshold,
        )


def format_support(number_format: NumberFormat, device: DeviceInfo) -> FormatStatus:
    """How ``device`` runs ``number_format`` in Linear layers."""
    if number_format is NumberFormat.EXACT:
        return FormatStatus("native")
    if device.kind == "cpu":
        return FormatStatus("emulated", f"a CPU has no {number_format.value.upper()} arithmetic")
    if device.kind != "cuda" or device.capability is None:
        return FormatStatus("refused", f"{device.name} ({device.kind}) is not supported; use CUDA or a CPU")
    at = ".".join(map(str, device.capability))
    if number_format is NumberFormat.NVFP4:
        if device.capability >= (10, 0):
            return FormatStatus("native")
        return FormatStatus("emulated", f"{device.name} (compute {at}) has no FP4 tensor cores; Blackwell has")
    if number_format is NumberFormat.FP8:
        if device.capability >= (8, 9):
            return FormatStatus("native")
        return FormatStatus("emulated", f"{device.name} (compute {at}) has no FP8 tensor cores; Ada and Hopper have")
    if (8, 0) <= device.capability < (10, 0):
        return FormatStatus("native")
    return FormatStatus("emulated", f"{device.name} (compute {at}) has no fast INT8 path; Ampere to Hopper have")


def _auto(device: DeviceInfo) -> tuple[NumberFormat, str | None]:
    for candidate in (NumberFormat.NVFP4, NumberFormat.FP8):
        if format_support(candidate, device).status == "native":
            return candidate, None
    return NumberFormat.EXACT, (
        f"prefill_format='auto' stays exact: {device.name} runs neither NVFP4 nor FP8 natively; name a format "
        "(for example policy 'mixquant-nvfp4') to have it emulated"
    )


def resolve(policy: PrecisionPolicy, device: DeviceInfo) -> ResolvedPolicy:
    """What ``policy`` means on ``device``.

    Raises:
        FormatRefusedError: the device cannot run the named format at all, or the policy asks for a part that cannot be
            honoured here.
    """
    wanted, reason = policy.prefill_format, None
    if wanted is NumberFormat.AUTO:
        wanted, reason = _auto(device)
    support = format_support(wanted, device)
    if support.status == "refused":
        raise FormatRefusedError(f"prefill_format={wanted.value!r} is refused: {support.reason}; or use policy 'exact'")
    if policy.weight_only and support.status == "native":
        support = FormatStatus(
            "emulated", "weight_only=True has no kernel here: rows are multiplied in wide arithmetic"
        )
    quantizes = wanted is not NumberFormat.EXACT
    decode = policy.decode_format
    if policy.exact_last_token == "auto":  # noqa: S105 - a token of text, not a secret
        exact_last = not quantizes or (wanted is NumberFormat.NVFP4 and decode is NumberFormat.EXACT)
    else:
        exact_last = policy.exact_last_token or not quantizes
    threshold: int | None
    if policy.reproducible:
        threshold = 0
    elif policy.row_threshold == "auto":
        # Emulation saves nothing at any size, so there is no size below which to avoid it.
        threshold = None if quantizes and support.status == "native" else 0
    else:
        threshold = policy.row_threshold
    return ResolvedPolicy(
        policy, wanted, decode, support.status == "emulated", exact_last, threshold, reason or support.reason
    )
