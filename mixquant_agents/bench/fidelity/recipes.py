"""What is compared: recipes for NVFP4, each alone and together, the other formats, and single sources of error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo

__all__ = [
    "BASELINE",
    "EMULATION",
    "CalibrationKind",
    "StudyRecipe",
    "fused_fp8",
    "layer_sources",
    "recipes",
    "sources",
    "worst_layers",
]

CalibrationKind = Literal["none", "scales", "gptq", "gptq-paired"]
"""What a recipe takes of calibration: nothing (activations are scaled by 1), scales of activations, twins rounded by
GPTQ for the exact model's inputs, or for those that a quantizing engine meets."""

_NVFP4, _FP8, _EXACT = NumberFormat.NVFP4, NumberFormat.FP8, NumberFormat.EXACT
_KV = (("k_proj", _FP8), ("v_proj", _FP8))
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
    gptq = {"weight_rounding": "gptq"}
    plain = {
        "plain": _nvfp4(),
        "last-quantized": _nvfp4(exact_last_token=False),
        "first-16-exact": _nvfp4(exact_first_tokens=16),
        "w46": _nvfp4(**w46),
        "a46": _nvfp4(**a46),
        "w46+a46": _nvfp4(**w46, **a46),
        "residual-64": _nvfp4(residual_channels=64),
        "down-fp8": _nvfp4(formats={"down_proj": _FP8}),
        "o-fp8": _nvfp4(formats={"o_proj": _FP8}),
        "k-fp8": _nvfp4(formats={"k_proj": _FP8}),
        "v-fp8": _nvfp4(formats={"v_proj": _FP8}),
        "kv-fp8": _nvfp4(**kv),
        "kv-exact": _nvfp4(formats={"k_proj": _EXACT, "v_proj": _EXACT}),
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
        "qkv-fp8+gptq": StudyRecipe(_nvfp4(**qkv, **gptq), "gptq"),
        "qkv-fp8+gptq+static-exact": StudyRecipe(_nvfp4(**qkv, **gptq), "gptq", static_exact=True),
    }
    for kind in ("gptq", "gptq-paired"):
        rounded = {
            kind: _nvfp4(**gptq),
            f"{kind}+w46": _nvfp4(**gptq, **w46),
            f"kv-fp8+{kind}": _nvfp4(**kv, **gptq),
            f"kv-fp8+{kind}+w46": _nvfp4(**kv, **gptq, **w46),
            f"kv-fp8+{kind}+w46+a46": _nvfp4(**kv, **gptq, **w46, **a46),
            f"kv-fp8+{kind}+w46+a46+residual-64": _nvfp4(**kv, **gptq, **w46, **a46, residual_channels=64),
        }
        made |= {name: StudyRecipe(policy, kind) for name, policy in rounded.items()}
        made |= {
            f"kv-fp8+{kind}+w46+static-exact": StudyRecipe(_nvfp4(**kv, **gptq, **w46), kind, static_exact=True),
            f"kv-fp8+{kind}+w46+a46+static-exact": StudyRecipe(
                _nvfp4(**kv, **gptq, **w46, **a46), kind, static_exact=True
            ),
        }
    return made


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


def fused_fp8(ranked: Sequence[int], count: int, rounding: CalibrationKind = "scales") -> StudyRecipe:
    """q, k and v in FP8 in the first ``count`` blocks of ``ranked``, all else in NVFP4."""
    formats = tuple((f"{_block(number)}.*qkv_proj$", _FP8) for number in sorted(ranked[:count]))
    fields: dict[str, object] = {"weight_rounding": "gptq"} if rounding == "gptq" else {}
    return StudyRecipe(_nvfp4(formats=formats, **fields), rounding)


def _block(number: int) -> str:
    return rf"re:(.*\.)?(layers|h|blocks)\.{number}\."
