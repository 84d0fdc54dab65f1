"""From what the policy asks to what this device does: native, emulated, or refused with the reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.layer_filter import format_named, is_experts, is_ignored, parts_of
from mixquant_agents.precision.plan import Reach, RowRule
from mixquant_agents.precision.policy import NVFP4_RECIPE, PrecisionPolicy
from mixquant_agents.precision.recipe import PLAIN, Recipe
from mixquant_agents.precision.support import DeviceInfo, FormatStatus, format_support, nested_support, nests_by_default

__all__ = ["LayerFormat", "PartFormats", "ResolvedPolicy", "RoutedFormat", "resolve"]


@dataclass(frozen=True, slots=True)
class LayerFormat:
    """How the quantized rows of one layer run.

    Attributes:
        number_format: a quantized format.
        emulated: in wide arithmetic on rounded values, not in the device's own arithmetic of the format.
        weight_only: weights are rounded, activations are not.
        recipe: how, beyond the nearest value.
        nested: the twin lies within the exact weight, one storage for both.
    """

    number_format: NumberFormat
    emulated: bool
    weight_only: bool = False
    recipe: Recipe = PLAIN
    nested: bool = False

    @property
    def name(self) -> str:
        """For people, for example ``"nvfp4-emulated-weight-only"`` or ``"fp8-native"``."""
        kind = "emulated" if self.emulated else "native"
        suffix = ("-weight-only" if self.weight_only else "") + ("-nested" if self.nested else "")
        return f"{self.number_format.value}-{kind}{suffix}{self.recipe.name}"


@dataclass(frozen=True, slots=True)
class PartFormats:
    """How the quantized rows of a layer run that vLLM made of several: one format for each, in their order.

    Attributes:
        parts: not all equal; ``None``: the part's rows stay exact.
    """

    parts: tuple[LayerFormat | None, ...]

    @property
    def name(self) -> str:
        """For people, for example ``"nvfp4-native + fp8-native + fp8-native"``."""
        return " + ".join("exact" if part is None else part.name for part in self.parts)


RoutedFormat = LayerFormat | PartFormats


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """A policy on a device.

    Attributes:
        policy: what is followed: what was asked for, and where ``auto`` chose NVFP4, its default recipe.
        prefill_format, decode_format: what runs; ``AUTO`` no more.
        emulated: quantized rows are computed in wide arithmetic on rounded values. Never faster than exact.
        exact_last_token: the last prompt token runs exact, or as many of the last as the policy says.
        row_threshold: a step with at most so many rows runs exact; ``None``: to be measured on the device.
        reason: why ``auto`` chose exact, or why the format is emulated.
        calibrated: the calibration that the policy asks for is there; without it twins are rounded to the nearest
            value.
        asked: what was asked for, as it was.
        storage: how exact weights and twins are held; ``"separate"`` where nothing is quantized.
    """

    policy: PrecisionPolicy
    prefill_format: NumberFormat
    decode_format: NumberFormat
    emulated: bool
    exact_last_token: bool
    row_threshold: int | None
    reason: str | None
    storage: Literal["separate", "nested"] = "separate"
    calibrated: bool = True
    asked: PrecisionPolicy | None = None

    @property
    def name(self) -> str:
        """Of what was asked for."""
        return (self.asked or self.policy).name

    @property
    def quantizes(self) -> bool:
        """Whether any row may be quantized."""
        return self.prefill_format is not NumberFormat.EXACT

    @property
    def default_format(self) -> LayerFormat | None:
        """How quantized rows run in a layer that the policy does not single out; ``None``: it quantizes nothing."""
        if not self.quantizes:
            return None
        return self._in(self.prefill_format)

    def _in(self, number_format: NumberFormat) -> LayerFormat:
        recipe = self.policy.recipe if number_format is NumberFormat.NVFP4 else PLAIN
        if not self.calibrated:
            recipe = recipe.uncalibrated
        nested = self.storage == "nested"
        return LayerFormat(number_format, self.emulated, self.policy.weight_only, recipe, nested)

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """All formats that layers may have: the default first; none where nothing is quantized."""
        if not self.quantizes:
            return ()
        named = [name for _, name in self.policy.formats if name is not NumberFormat.EXACT]
        return tuple(self._in(name) for name in dict.fromkeys((self.prefill_format, *named)))

    @property
    def calibrated_by(self) -> str | None:
        """The calibration that the policy names, where a layer has a use for it: those in NVFP4 have."""
        nvfp4 = any(each.number_format is NumberFormat.NVFP4 for each in self.formats)
        return self.policy.calibration if nvfp4 else None

    def layer_format(self, prefix: str, fused: Mapping[str, Sequence[str]]) -> RoutedFormat | None:
        """How quantized rows run in the layer ``prefix``; ``None`` where every row stays exact.

        Args:
            prefix: the layer's full name.
            fused: vLLM's fused layers and their parts; see :func:`~mixquant_agents.precision.layer_filter.is_ignored`.

        Raises:
            ConfigError: only some parts of a fused layer are ignored.
        """
        if not self.quantizes or is_ignored(prefix, self.policy.ignored_layers, fused):
            return None
        if not self.policy.formats:
            return self._of(prefix, self.default_format)
        named = [format_named((part, prefix), self.policy.formats) for part in parts_of(prefix, fused)]
        parts = tuple(map(self._named, named))
        return self._of(prefix, parts[0]) if len(set(parts)) == 1 else PartFormats(parts)

    @staticmethod
    def _of(prefix: str, layer_format: LayerFormat | None) -> LayerFormat | None:
        """Experts' weights are not nested: their twins lie beside them. And no calibration knows their inputs."""
        if layer_format is None or not is_experts(prefix):
            return layer_format
        return replace(layer_format, nested=False, recipe=layer_format.recipe.uncalibrated)

    def _named(self, number_format: NumberFormat | None) -> LayerFormat | None:
        if number_format is NumberFormat.EXACT:
            return None
        return self._in(number_format or self.prefill_format)

    def rule(self, measured_threshold: int = 0, mixed_threshold: int = 0) -> RowRule:
        """The row rule; ``measured_threshold`` stands in where the policy left it to measurement."""
        return RowRule(
            self._reach(),
            first=self.policy.exact_first_tokens if self.quantizes else 0,
            last=self.policy.exact_last_tokens,
            last_exact_from=self.policy.exact_last_token_from,
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


def _storage(policy: PrecisionPolicy, prefill: NumberFormat, device: DeviceInfo) -> Literal["separate", "nested"]:
    if policy.storage == "nested":
        support = nested_support(prefill, device)
        if support.status == "refused":
            raise FormatRefusedError(f"storage='nested' is refused: {support.reason}; leave storage 'auto'")
        return "nested"
    plain = policy.storage == "auto" and not (policy.formats or policy.weight_only or policy.uniform)
    return "nested" if plain and nests_by_default(prefill, device) else "separate"


def _with_recipe(policy: PrecisionPolicy) -> PrecisionPolicy:
    """NVFP4's default recipe, where the policy says nothing of what the recipe is about."""
    fields = policy.model_dump()
    plain = PrecisionPolicy().model_dump()
    changed = [
        name for name in (*NVFP4_RECIPE, "exact_last_token", "prefill_checkpoint") if fields[name] != plain[name]
    ]
    recipe = {} if changed else NVFP4_RECIPE
    return PrecisionPolicy.model_validate({**fields, "prefill_format": NumberFormat.NVFP4, **recipe})


def resolve(policy: PrecisionPolicy, device: DeviceInfo, *, calibrated: bool = True) -> ResolvedPolicy:
    """What ``policy`` means on ``device``, with the calibration that it asks for or ``calibrated=False`` without.

    Raises:
        FormatRefusedError: the device cannot run the named format at all, or the policy asks for a part that cannot be
            honoured here.
    """
    asked, prefill, reason = policy, policy.prefill_format, None
    if prefill is NumberFormat.AUTO:
        prefill, reason = _auto(device)
    storage = _storage(policy, prefill, device)
    if asked.prefill_format is NumberFormat.AUTO and prefill is NumberFormat.NVFP4:
        policy = _with_recipe(policy)
    support = format_support(prefill, device)
    if support.status == "refused":
        raise FormatRefusedError(
            f"prefill_format={prefill.value!r} is refused: {support.reason}; or use policy 'exact'"
        )
    if policy.weight_only and support.status == "native":
        support = FormatStatus(
            "emulated", "weight_only=True has no kernel here: rows are multiplied in wide arithmetic"
        )
    for number_format in dict.fromkeys(name for _, name in policy.formats):
        own = format_support(number_format, device)
        if support.status == "native" and own.status == "emulated":
            # One engine routes in captured graphs or in Python, for all of its layers.
            support = FormatStatus("emulated", f"formats names {number_format.value!r}: {own.reason}")
    setting = policy.recipe.without_kernel
    if setting and support.status == "native":
        support = FormatStatus("emulated", f"{setting} has no kernel here: rows are multiplied in wide arithmetic")
    quantizes = prefill is not NumberFormat.EXACT
    decode = policy.decode_format
    if not quantizes:
        exact_last = True
    elif policy.exact_last_token == "auto":  # noqa: S105 - a token of text, not a secret
        exact_last = FORMATS[prefill].keeps_last_token_exact and decode is NumberFormat.EXACT
    else:
        exact_last = policy.exact_last_token
    if quantizes and policy.exact_last_tokens > 1:
        exact_last = True
    threshold: int | None
    if policy.reproducible:
        threshold = 0
    elif policy.row_threshold == "auto":
        # Emulation saves nothing at any size, so there is no size below which to avoid it.
        threshold = None if quantizes and support.status == "native" else 0
    else:
        threshold = policy.row_threshold
    emulated = support.status == "emulated"
    return ResolvedPolicy(
        policy, prefill, decode, emulated, exact_last, threshold, reason or support.reason, storage, calibrated, asked
    )
