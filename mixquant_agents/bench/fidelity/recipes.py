"""What is compared: recipes for NVFP4, each alone and together, the other formats, and single sources of error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo

__all__ = [
    "BASELINE",
    "BUDGET",
    "EMULATION",
    "RANKED",
    "CalibrationKind",
    "StudyRecipe",
    "budget_recipes",
    "layer_sources",
    "recipes",
    "sources",
    "unit_sources",
    "worst_layers",
]

CalibrationKind = Literal[
    "none", "scales", "gptq", "gptq-behind", "gptq-paired", "gptq-ordered", "gptq-sweep", "gptq-balanced", "distilled"
]
"""What a recipe takes of calibration: nothing (activations are scaled by 1), scales of activations, twins rounded by
GPTQ for the exact model's inputs, for those behind a prompt's first tokens, or for those that a quantizing engine
meets, blocks by falling energy, with block scales swept, with channels balanced; or twins trained from GPTQ's, for the
recipe's own formats."""

BUDGET = 0.03
"""Predicted time that a default may add to plain NVFP4's prefill, at every length."""

_NVFP4, _FP8, _EXACT = NumberFormat.NVFP4, NumberFormat.FP8, NumberFormat.EXACT
_KV = (("k_proj", _FP8), ("v_proj", _FP8))
_EXACT_KV = (("k_proj", _EXACT), ("v_proj", _EXACT))
_ENDS: dict[str, object] = {"exact_first_tokens": 16, "exact_last_tokens": 48}
_WIDE: dict[str, object] = {"exact_first_tokens": 16, "exact_last_tokens": 112}
"""As many exact rows as captured graphs have room for, and 3 % of the time at 2k tokens."""
_LATE: dict[str, object] = {"exact_first_tokens": 4, "exact_last_tokens": 124}
"""As many, but for the first tokens that all attend to nearly all of them at the end."""

EMULATION = DeviceInfo("cpu", "emulation")
"""Fidelity is about rounding, so formats are emulated on any device."""

BASELINE = "uniform-nvfp4"
"""What loss is removed from: NVFP4 in both phases."""


@dataclass(frozen=True, slots=True)
class StudyRecipe:
    """One thing to measure.

    Attributes:
        policy: as an engine would be given it.
        calibration: what of calibration it takes.
        static_exact: the system prompt and the tools come exact from the prefix cache.
        exact_weights: activations are rounded and weights are not: to see what activations cost.
        source: not a recipe to be used, but a look at one source of error.
    """

    policy: PrecisionPolicy
    calibration: CalibrationKind = "scales"
    static_exact: bool = False
    exact_weights: bool = False
    source: bool = False


def _nvfp4(**fields: object) -> PrecisionPolicy:
    return PrecisionPolicy.model_validate({"prefill_format": _NVFP4, "calibration": "auto", **fields})


def recipes() -> dict[str, StudyRecipe]:
    """All recipes by name; the baseline first."""
    kv, qkv = {"formats": _KV}, {"formats": (("qkv_proj", _FP8),)}
    w46, a46 = {"weight_scales": "4/6"}, {"activation_scales": "4/6"}
    gptq, behind = {"weight_rounding": "gptq"}, {"weight_rounding": "gptq-behind"}
    plain = {
        "plain": _nvfp4(),
        "last-quantized": _nvfp4(exact_last_token=False),
        "first-16-exact": _nvfp4(exact_first_tokens=16),
        "last-16-exact": _nvfp4(exact_last_tokens=16),
        "last-48-exact": _nvfp4(exact_last_tokens=48),
        "ends-exact": _nvfp4(**_ENDS),
        "wide-ends-exact": _nvfp4(**_WIDE),
        "w46": _nvfp4(**w46),
        "a46": _nvfp4(**a46),
        "w46+a46": _nvfp4(**w46, **a46),
        "residual-64": _nvfp4(residual_channels=64),
        "down-fp8": _nvfp4(formats={"down_proj": _FP8}),
        "o-fp8": _nvfp4(formats={"o_proj": _FP8}),
        "k-fp8": _nvfp4(formats={"k_proj": _FP8}),
        "v-fp8": _nvfp4(formats={"v_proj": _FP8}),
        "kv-fp8": _nvfp4(**kv),
        "kv-exact": _nvfp4(formats=_EXACT_KV),
        "qkv-fp8": _nvfp4(**qkv),
        "qkv-fp8+first-16-exact": _nvfp4(**qkv, exact_first_tokens=16),
        "attention-fp8": _nvfp4(formats={"qkv_proj": _FP8, "o_proj": _FP8}),
        "kv-fp8+down-fp8": _nvfp4(formats=(*_KV, ("down_proj", _FP8))),
        "kv-fp8+first-16-exact": _nvfp4(**kv, exact_first_tokens=16),
        "kv-fp8+w46+a46": _nvfp4(**kv, **w46, **a46),
        "kv-fp8+residual-64": _nvfp4(**kv, residual_channels=64),
    }
    made = {
        BASELINE: StudyRecipe(_nvfp4(decode_format=_NVFP4)),
        "uniform-nvfp4-unscaled": StudyRecipe(_nvfp4(decode_format=_NVFP4, calibration=None), "none"),
        "plain-unscaled": StudyRecipe(_nvfp4(calibration=None), "none"),
        **{name: StudyRecipe(policy) for name, policy in plain.items()},
        "mxfp4": StudyRecipe(PrecisionPolicy.of("mixquant-mxfp4")),
        "fp8": StudyRecipe(PrecisionPolicy.of("mixquant-fp8")),
        "fp8-last-exact": StudyRecipe(PrecisionPolicy(prefill_format=_FP8, exact_last_token=True)),
        "int8": StudyRecipe(PrecisionPolicy.of("mixquant-int8")),
        "static-exact": StudyRecipe(_nvfp4(), static_exact=True),
        "kv-fp8+static-exact": StudyRecipe(_nvfp4(**kv), static_exact=True),
        "fp8-last-48-exact": StudyRecipe(PrecisionPolicy(prefill_format=_FP8, exact_last_tokens=48)),
        "fp8-first-16-exact": StudyRecipe(PrecisionPolicy(prefill_format=_FP8, exact_first_tokens=16)),
        "fp8-ends-exact": StudyRecipe(
            PrecisionPolicy(prefill_format=_FP8, exact_last_tokens=48, exact_first_tokens=16)
        ),
        "fp8-kv-exact": StudyRecipe(PrecisionPolicy(prefill_format=_FP8, formats=_EXACT_KV)),
        "fp8-qkv-exact": StudyRecipe(PrecisionPolicy(prefill_format=_FP8, formats=(("qkv_proj", _EXACT),))),
        "gptq-paired": StudyRecipe(_nvfp4(**gptq), "gptq-paired"),
        "gptq-ordered": StudyRecipe(_nvfp4(**gptq), "gptq-ordered"),
        "gptq-sweep": StudyRecipe(_nvfp4(**gptq), "gptq-sweep"),
        "gptq-behind+ends-exact": StudyRecipe(_nvfp4(**behind, **_ENDS), "gptq-behind"),
        "gptq-behind+wide-ends-exact": StudyRecipe(_nvfp4(**behind, **_WIDE), "gptq-behind"),
        "distilled": StudyRecipe(_nvfp4(**gptq), "distilled"),
        "distilled+ends-exact": StudyRecipe(_nvfp4(**gptq, **_ENDS), "distilled"),
        "gptq-ordered+ends-exact": StudyRecipe(_nvfp4(**gptq, **_ENDS), "gptq-ordered"),
    }
    rounded = {
        "gptq": _nvfp4(**gptq),
        "gptq+w46": _nvfp4(**gptq, **w46),
        "gptq+ends-exact": _nvfp4(**gptq, **_ENDS),
        "gptq+wide-ends-exact": _nvfp4(**gptq, **_WIDE),
        "kv-fp8+gptq": _nvfp4(**kv, **gptq),
        "kv-fp8+gptq+w46": _nvfp4(**kv, **gptq, **w46),
        "kv-fp8+gptq+w46+a46": _nvfp4(**kv, **gptq, **w46, **a46),
        "kv-fp8+gptq+w46+a46+residual-64": _nvfp4(**kv, **gptq, **w46, **a46, residual_channels=64),
        "qkv-fp8+gptq": _nvfp4(**qkv, **gptq),
        "qkv-fp8+gptq+w46": _nvfp4(**qkv, **gptq, **w46),
        "qkv-fp8+gptq+ends-exact": _nvfp4(**qkv, **gptq, **_ENDS),
        "qkv-fp8+gptq+wide-ends-exact": _nvfp4(**qkv, **gptq, **_WIDE),
    }
    made |= {name: StudyRecipe(policy, "gptq") for name, policy in rounded.items()}
    balanced = {**gptq, "channel_scales": "balanced"}
    made |= {
        name: StudyRecipe(policy, "gptq-balanced")
        for name, policy in {
            "balanced": _nvfp4(**balanced),
            "balanced+w46": _nvfp4(**balanced, **w46),
            "balanced+w46+a46": _nvfp4(**balanced, **w46, **a46),
            "kv-fp8+balanced+w46": _nvfp4(**kv, **balanced, **w46),
            "qkv-fp8+balanced+w46": _nvfp4(**qkv, **balanced, **w46),
            "balanced+ends-exact": _nvfp4(**balanced, **_ENDS),
            "balanced+wide-ends-exact": _nvfp4(**balanced, **_WIDE),
            "balanced+late-ends-exact": _nvfp4(**balanced, **_LATE),
            "balanced+w46+late-ends-exact": _nvfp4(**balanced, **w46, **_LATE),
            "balanced+w46+wide-ends-exact": _nvfp4(**balanced, **w46, **_WIDE),
            "balanced+w46+a46+wide-ends-exact": _nvfp4(**balanced, **w46, **a46, **_WIDE),
        }.items()
    }
    made["gptq+w46+wide-ends-exact"] = StudyRecipe(_nvfp4(**gptq, **w46, **_WIDE), "gptq")
    made["gptq+w46+a46+wide-ends-exact"] = StudyRecipe(_nvfp4(**gptq, **w46, **a46, **_WIDE), "gptq")
    static = (
        "fp8",
        "fp8-last-exact",
        "fp8-kv-exact",
        "balanced+wide-ends-exact",
        "balanced+late-ends-exact",
        "balanced+w46+late-ends-exact",
        "balanced+w46+wide-ends-exact",
        "balanced+w46+a46+wide-ends-exact",
        "gptq+w46+wide-ends-exact",
        "kv-fp8+gptq+w46",
        "kv-fp8+gptq+w46+a46",
        "qkv-fp8+gptq",
        "ends-exact",
        "gptq+ends-exact",
        "gptq+wide-ends-exact",
        "gptq-behind+ends-exact",
        "gptq-behind+wide-ends-exact",
        "gptq-ordered+ends-exact",
        "qkv-fp8+gptq+ends-exact",
        "qkv-fp8+gptq+wide-ends-exact",
        "distilled",
        "distilled+ends-exact",
    )
    return made | {f"{name}+static-exact": replace(made[name], static_exact=True) for name in static}


def sources(projections: Sequence[str]) -> dict[str, StudyRecipe]:
    """Where plain NVFP4's loss comes from: weights, activations, and each projection with all others exact."""
    made = {
        "weights alone": StudyRecipe(_nvfp4(weight_only=True), source=True),
        "activations alone": StudyRecipe(_nvfp4(), exact_weights=True, source=True),
    }
    for name in projections:
        only = _nvfp4(formats=((name, _NVFP4), ("re:.*", _EXACT)))
        made[f"{name} alone"] = StudyRecipe(only, source=True)
    return made


def layer_sources(layers: int) -> dict[str, StudyRecipe]:
    """Each block alone in NVFP4, all others exact; by ``"layer N alone"``."""
    return {
        f"layer {number} alone": StudyRecipe(_nvfp4(formats=((_block(number), _NVFP4), ("re:.*", _EXACT))), source=True)
        for number in range(layers)
    }


def worst_layers(ranked: Sequence[int], count: int, base: StudyRecipe) -> StudyRecipe:
    """``base`` with the first ``count`` blocks of ``ranked`` in FP8 altogether."""
    blocks = tuple((_block(number), _FP8) for number in sorted(ranked[:count]))
    policy = base.policy.model_copy(update={"formats": blocks + base.policy.formats})
    return StudyRecipe(policy, base.calibration, base.static_exact)


def unit_sources(units: Sequence[str]) -> dict[str, StudyRecipe]:
    """Each layer, as vLLM fuses them, alone in NVFP4, all others exact; by its name."""
    return {name: StudyRecipe(_nvfp4(formats=((name, _NVFP4), ("re:.*", _EXACT))), source=True) for name in units}


def budget_recipes(projections: Sequence[str]) -> dict[str, StudyRecipe]:
    """Recipes with the layers ``chosen`` in FP8, which is what the budget of time allows: those of ``RANKED``."""
    formats = {"formats": tuple((name, _FP8) for name in projections)}
    gptq: dict[str, object] = {**formats, "weight_rounding": "gptq"}
    balanced: dict[str, object] = {**gptq, "weight_scales": "4/6", "channel_scales": "balanced"}
    made = {
        "budget": StudyRecipe(_nvfp4(**formats)),
        "budget+ends-exact": StudyRecipe(_nvfp4(**formats, **_ENDS)),
        "budget+gptq": StudyRecipe(_nvfp4(**gptq), "gptq"),
        "budget+gptq+w46": StudyRecipe(_nvfp4(**gptq, weight_scales="4/6"), "gptq"),
        "budget+gptq+a46": StudyRecipe(_nvfp4(**gptq, activation_scales="4/6"), "gptq"),
        "budget+gptq-ordered": StudyRecipe(_nvfp4(**gptq), "gptq-ordered"),
        "budget+gptq-sweep": StudyRecipe(_nvfp4(**gptq), "gptq-sweep"),
        "budget+balanced+w46": StudyRecipe(_nvfp4(**balanced), "gptq-balanced"),
        "budget+gptq+first-16-exact": StudyRecipe(_nvfp4(**gptq, exact_first_tokens=16), "gptq"),
        "budget+gptq+last-16-exact": StudyRecipe(_nvfp4(**gptq, exact_last_tokens=16), "gptq"),
        "budget+gptq+ends-exact": StudyRecipe(_nvfp4(**gptq, **_ENDS), "gptq"),
        "budget+distilled": StudyRecipe(_nvfp4(**gptq), "distilled"),
        "budget+distilled+ends-exact": StudyRecipe(_nvfp4(**gptq, **_ENDS), "distilled"),
    }
    static = ("budget+gptq", "budget+gptq+ends-exact", "budget+distilled", "budget+distilled+ends-exact")
    return made | {f"{name}+static-exact": replace(made[name], static_exact=True) for name in static}


RANKED = tuple(budget_recipes(()))
"""Recipes that need the loss of every layer first."""


def _block(number: int) -> str:
    return rf"re:(.*\.)?(layers|h|blocks)\.{number}\."
