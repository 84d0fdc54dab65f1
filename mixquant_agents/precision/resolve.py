"""From what the policy asks to what this device does: native, emulated, or refused with the reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.layer_filter import is_ignored
from mixquant_agents.precision.plan import Reach, RowRule
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo, FormatStatus, format_support

__all__ = ["LayerFormat", "ResolvedPolicy", "resolve"]


@dataclass(frozen=True, slots=True)
class LayerFormat:
    """How the quantized rows of one layer run.

    Attributes:
        number_format: a quantized format.
        emulated: in wide arithmetic on rounded values, not in the device's own arithmetic of the format.
        weight_only: weights are rounded, activations are not.
    """

    number_format: NumberFormat
    emulated: bool
    weight_only: bool = False

    @property
    def name(self) -> str:
        """For people, for example ``"nvfp4-emulated-weight-only"`` or ``"fp8-native"``."""
        kind = "emulated" if self.emulated else "native"
        return f"{self.number_format.value}-{kind}" + ("-weight-only" if self.weight_only else "")


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

    @property
    def default_format(self) -> LayerFormat | None:
        """How quantized rows run in a layer that the policy does not single out; ``None``: it quantizes nothing."""
        if not self.quantizes:
            return None
        return LayerFormat(self.prefill_format, self.emulated, self.policy.weight_only)

    def layer_format(self, prefix: str, fused: Mapping[str, Sequence[str]]) -> LayerFormat | None:
        """How quantized rows run in the layer ``prefix``; ``None`` where every row stays exact.

        Args:
            prefix: the layer's full name.
            fused: vLLM's fused layers and their parts; see :func:`~mixquant_agents.precision.layer_filter.is_ignored`.

        Raises:
            ConfigError: only some parts of a fused layer are ignored.
        """
        return None if is_ignored(prefix, self.policy.ignored_layers, fused) else self.default_format

    def rule(self, measured_threshold: int = 0, mixed_threshold: int = 0) -> RowRule:
        """The row rule; ``measured_threshold`` stands in where the policy left it to measurement."""
        return RowRule(
            self._reach(),
            threshold=measured_threshold if self.row_threshold is None else self.row_threshold,
            mixed=mixed_threshold,
        )

    def _reach(self) -> Reach:
        if not self.quantizes:
            return Reach.NOTHING
        if self.decode_format is not NumberFormat.EXACT:
            return Reach.EVERYTHING
        return Reach.BEFORE_LAST if self.exact_last_token else Reach.PROMPT


def _auto(device: DeviceInfo) -> tuple[NumberFormat, str | None]:
    automatic = [candidate for candidate, spec in FORMATS.items() if spec.automatic]
    for candidate in automatic:
        if format_support(candidate, device).status == "native":
            return candidate, None
    names = " nor ".join(candidate.value.upper() for candidate in automatic)
    return NumberFormat.EXACT, (
        f"prefill_format='auto' stays exact: {device.name} runs neither {names} natively; name a format "
        "(for example policy 'mixquant-nvfp4') to have it emulated"
    )


def resolve(policy: PrecisionPolicy, device: DeviceInfo) -> ResolvedPolicy:
    """What ``policy`` means on ``device``.

    Raises:
        FormatRefusedError: the device cannot run the named format at all, or the policy asks for a part that cannot be
            honoured here.
    """
    prefill, reason = policy.prefill_format, None
    if prefill is NumberFormat.AUTO:
        prefill, reason = _auto(device)
    support = format_support(prefill, device)
    if support.status == "refused":
        raise FormatRefusedError(
            f"prefill_format={prefill.value!r} is refused: {support.reason}; or use policy 'exact'"
        )
    if policy.weight_only and support.status == "native":
        support = FormatStatus(
            "emulated", "weight_only=True has no kernel here: rows are multiplied in wide arithmetic"
        )
    quantizes = prefill is not NumberFormat.EXACT
    decode = policy.decode_format
    if not quantizes:
        exact_last = True
    elif policy.exact_last_token == "auto":  # noqa: S105 - a token of text, not a secret
        exact_last = FORMATS[prefill].keeps_last_token_exact and decode is NumberFormat.EXACT
    else:
        exact_last = policy.exact_last_token
    threshold: int | None
    if policy.reproducible:
        threshold = 0
    elif policy.row_threshold == "auto":
        # Emulation saves nothing at any size, so there is no size below which to avoid it.
        threshold = None if quantizes and support.status == "native" else 0
    else:
        threshold = policy.row_threshold
    return ResolvedPolicy(
        policy, prefill, decode, support.status == "emulated", exact_last, threshold, reason or support.reason
    )
