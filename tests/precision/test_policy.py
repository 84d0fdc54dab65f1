"""Policies: presets by name, and what is refused with the reason."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.policy import POLICY_PRESETS, PolicyName, PrecisionPolicy


def test_reproducible_preset_keeps_its_name() -> None:
    preset = PrecisionPolicy.of("mixquant-nvfp4")
    assert preset.model_copy(update={"reproducible": True}).name == "mixquant-nvfp4-reproducible"
    changed = preset.model_copy(update={"reproducible": True, "exact_last_tokens": 7})
    assert changed.name.startswith("custom-")


def test_presets_by_name() -> None:
    assert list(POLICY_PRESETS) == [
        "exact", "mixquant", "mixquant-nvfp4", "mixquant-fp8", "mixquant-int8", "mixquant-mxfp4",
        "mixquant-nvfp4-plain",
        "uniform-nvfp4", "uniform-fp8", "uniform-int8", "uniform-mxfp4",
    ]  # fmt: skip
    assert list(POLICY_PRESETS) == list(get_args(PolicyName))
    for name, policy in POLICY_PRESETS.items():
        assert PrecisionPolicy.of(name) is policy
        assert policy.name == name
        assert policy.uniform == name.startswith("uniform")
        assert policy.quantizes == (name != "exact")
    assert len({policy.fingerprint for policy in POLICY_PRESETS.values()}) == len(POLICY_PRESETS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_format": "auto"}, "decode_format cannot be 'auto'"),
        (
            {"prefill_format": "exact", "decode_format": "fp8"},
            "='exact' is not supported; leave decode_format",
        ),
        ({"prefill_format": "nvfp4", "decode_format": "fp8"}, "prefill_format='nvfp4'"),
        ({"reproducible": True, "row_threshold": 64}, "row_threshold 0, not 64"),
        ({"prefill_format": "fp8", "prefill_checkpoint": "x"}, "prefill_format='nvfp4'"),
        ({"weight_only": True}, "named quantized"),
        ({"prefill_format": "exact", "draft": "twin"}, "draft='twin' with prefill_format='exact'"),
        ({"prefill_format": "fp8", "decode_format": "fp8", "draft": "twin"}, "use a phase-aware policy"),
        ({"prefill_format": "fp8", "draft_tokens": 2}, "draft_tokens=2 without drafts"),
        (
            {"prefill_format": "fp8", "decode_format": "fp8", "exact_last_token": True},
            "exact_last_token=True with decode_format='fp8' is not supported",
        ),
        ({"row_threshold": -1}, "row_threshold"),
        ({"prefill_format": "nvfp4", "exact_last_tokens": 16, "exact_last_token": False}, "no prompt token at the end"),
        ({"prefill_format": "nvfp4", "decode_format": "nvfp4", "exact_last_tokens": 2}, "decode_format='nvfp4'"),
        ({"prefill_format": "fp8", "decode_format": "fp8", "exact_static_prefix": True}, "exact_static_prefix=True"),
        (
            {"prefill_format": "nvfp4", "weight_rounding": "gptq-behind", "calibration": "auto"},
            "exact_first_tokens=0 quantizes earlier ones; use 'gptq'",
        ),
        ({"prefill_format": "nvfp4", "storage": "nested"}, "holds FP8 twins, not prefill_format='nvfp4'"),
        ({"prefill_format": "fp8", "storage": "nested", "weight_only": True}, "weight_only=True has no product"),
        ({"prefill_format": "fp8", "storage": "nested", "formats": {"k_proj": "exact"}}, "leave formats empty"),
        ({"storage": "twelve"}, "storage"),
        ({"draft_ngram": True}, "draft_ngram=True without drafts; set draft='twin'"),
        ({"draft_window": 128}, "draft_window=128 without drafts; set draft='twin'"),
        ({"prefill_format": "fp8", "calibration": "auto"}, "is for layers in NVFP4, and prefill_format is 'fp8'"),
        (
            {"prefill_format": "nvfp4", "weight_only": True, "activation_scales": "4/6"},
            "activation_scales='4/6' is about activations, and weight_only=True leaves them",
        ),
        (
            {"prefill_format": "nvfp4", "prefill_checkpoint": "x", "weight_scales": "4/6"},
            "weight_scales='4/6' and prefill_checkpoint each bring the twins",
        ),
        (
            {"prefill_format": "nvfp4", "prefill_checkpoint": "x", "formats": {"o_proj": "exact", "k_proj": "fp8"}},
            "formats gives 'k_proj' the format 'fp8', and prefill_checkpoint='x' holds twins in 'nvfp4' alone",
        ),
        ({"precision": 4}, "no setting 'precision'"),
    ],
)
def test_refused_policies_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrecisionPolicy(**settings)


@given(
    prefill=st.sampled_from(list(FORMATS)),
    threshold=st.one_of(st.just("auto"), st.integers(0, 4096)),
    last=st.sampled_from(["auto", True, False]),
    uniform=st.booleans(),
)
def test_legal_policies_survive_json(prefill: NumberFormat, threshold: object, last: object, uniform: bool) -> None:
    policy = PrecisionPolicy(
        prefill_format=prefill,
        decode_format=prefill if uniform else NumberFormat.EXACT,
        row_threshold=threshold,  # type: ignore[arg-type]
        exact_last_token=False if uniform and last is True else last,  # type: ignore[arg-type]
    )
    again = PrecisionPolicy.model_validate_json(policy.model_dump_json())
    assert again == policy
    assert again.fingerprint == policy.fingerprint
