"""Configuration is frozen, refuses what it does not know, and says what to do instead."""

import pytest
from pydantic import ValidationError

from mixquant_agents.config import POLICY_PRESETS, EngineConfig, PrecisionPolicy
from mixquant_agents.errors import ConfigError, UnknownPolicyError


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UnknownPolicyError, match=r"'fast'.*mixquant-fp8"):
        PrecisionPolicy.of("fast")
    with pytest.raises(UnknownPolicyError, match="'fast'"):
        EngineConfig(model="m", policy="fast")  # type: ignore[arg-type]


def test_settings_cannot_be_changed_afterwards() -> None:
    config = EngineConfig(model="m")
    with pytest.raises(ValidationError, match="frozen"):
        config.model = "n"  # type: ignore[misc]


def test_representation_shows_what_is_not_as_by_default() -> None:
    """And it is the call that makes the same settings again."""
    assert repr(EngineConfig(model="embedded", seed=3)) == "EngineConfig(model='embedded', seed=3)"
    policy = PrecisionPolicy(prefill_format="nvfp4", formats={"k_proj": "fp8"}, exact_last_tokens=2)
    assert "NumberFormat" not in repr(PrecisionPolicy.of("mixquant-nvfp4"))
    assert repr(PrecisionPolicy.of("uniform-fp8")) == "PrecisionPolicy(prefill_format='fp8', decode_format='fp8')"
    assert repr(policy).startswith("PrecisionPolicy(prefill_format='nvfp4', exact_last_tokens=2, formats=")
    for policy in POLICY_PRESETS.values():
        assert eval(repr(policy), {"PrecisionPolicy": PrecisionPolicy}) == policy  # noqa: S307 - our own text


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
