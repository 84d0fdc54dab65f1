"""Configuration is frozen, refuses what it does not know, and says what to do instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mixquant_agents.config import POLICY_PRESETS, EngineConfig, NumberFormat, PrecisionPolicy
from mixquant_agents.errors import ConfigError, UnknownPolicyError

QUANTIZED = [NumberFormat.NVFP4, NumberFormat.FP8, NumberFormat.INT8, NumberFormat.MXFP4]


def test_presets_by_name() -> None:
    assert list(POLICY_PRESETS) == [
        "exact", "mixquant", "mixquant-nvfp4", "mixquant-fp8", "mixquant-int8", "mixquant-mxfp4",
        "uniform-nvfp4", "uniform-fp8", "uniform-int8", "uniform-mxfp4",
    ]  # fmt: skip
    for name, policy in POLICY_PRESETS.items():
        assert PrecisionPolicy.of(name) is policy
        assert policy.name == name
        assert policy.uniform == name.startswith("uniform")
        assert policy.quantizes == (name != "exact")
    assert len({policy.fingerprint for policy in POLICY_PRESETS.values()}) == len(POLICY_PRESETS)


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UnknownPolicyError, match=r"'fast'.*mixquant-fp8"):
        PrecisionPolicy.of("fast")
    with pytest.raises(UnknownPolicyError, match="'fast'"):
        EngineConfig(model="m", policy="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode_format": "auto"}, "decode_format cannot be 'auto'"),
        ({"prefill_format": "exact", "decode_format": "fp8"}, "exact prefill"),
        ({"prefill_format": "nvfp4", "decode_format": "fp8"}, "prefill_format='nvfp4'"),
        ({"reproducible": True, "row_threshold": 64}, "row_threshold 0, not 64"),
        ({"prefill_format": "fp8", "prefill_checkpoint": "x"}, "prefill_format='nvfp4'"),
        ({"weight_only": True}, "named quantized"),
        (
            {"prefill_format": "fp8", "decode_format": "fp8", "exact_last_token": True},
            "exact_last_token=True with decode_format='fp8' is not supported",
        ),
        ({"row_threshold": -1}, "row_threshold"),
        ({"precision": 4}, "no setting 'precision'"),
    ],
)
def test_wrong_policies_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrecisionPolicy(**settings)


@given(
    prefill=st.sampled_from(QUANTIZED),
    threshold=st.one_of(st.just("auto"), st.integers(0, 4096)),
    last=st.sampled_from(["auto", True, False]),
    uniform=st.booleans(),
)
def test_every_legal_policy_survives_json(
    prefill: NumberFormat, threshold: object, last: object, uniform: bool
) -> None:
    policy = PrecisionPolicy(
        prefill_format=prefill,
        decode_format=prefill if uniform else NumberFormat.EXACT,
        row_threshold=threshold,  # type: ignore[arg-type]
        exact_last_token=False if uniform and last is True else last,  # type: ignore[arg-type]
    )
    again = PrecisionPolicy.model_validate_json(policy.model_dump_json())
    assert again == policy
    assert again.fingerprint == policy.fingerprint


def test_settings_cannot_be_changed_afterwards() -> None:
    config = EngineConfig(model="m")
    with pytest.raises(ValidationError, match="frozen"):
        config.model = "n"  # type: ignore[misc]


def test_equal_settings_have_equal_fingerprints() -> None:
    assert EngineConfig(model="m", policy="exact").fingerprint == EngineConfig(model="m", policy="exact").fingerprint  # type: ignore[arg-type]
    assert EngineConfig(model="m").fingerprint != EngineConfig(model="m", seed=1).fingerprint
    given = {"block_size": 16, "max_logprobs": 5}
    one, other = (EngineConfig(model="m", vllm_args=dict(args)) for args in (given.items(), reversed(given.items())))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "settings", [{"max_model_len": 1}, {"gpu_memory_utilization": 1.5}, {"model": ""}, {"modle": "x"}]
)
def test_wrong_engine_settings_name_field_and_value(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        EngineConfig(**{"model": "m", **settings})
