"""Configuration is frozen, refuses what it does not know, and says what to do instead."""

import ast
import inspect
import textwrap
from typing import get_args

import pytest
from pydantic import ValidationError

from mixquant_agents.config import POLICY_PRESETS, EngineConfig, PrecisionPolicy
from mixquant_agents.errors import ConfigError, UnknownPolicyError
from mixquant_agents.precision.formats import FormatName, NumberFormat


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UnknownPolicyError, match=r"'fast'.*mixquant-fp8"):
        PrecisionPolicy.of("fast")
    with pytest.raises(UnknownPolicyError, match="'fast'"):
        EngineConfig(model="m", policy="fast")


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


@pytest.mark.parametrize("settings", [EngineConfig, PrecisionPolicy], ids=lambda settings: settings.__name__)
def test_type_checkers_know_every_field(settings: type[EngineConfig] | type[PrecisionPolicy]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    made = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    assert [argument.arg for argument in made.args.kwonlyargs] == list(settings.model_fields)
    required = [
        arg.arg for arg, default in zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True) if not default
    ]
    assert required == [name for name, field in settings.model_fields.items() if field.is_required()]


def test_format_names_are_those_of_the_formats() -> None:
    assert get_args(FormatName) == tuple(number_format.value for number_format in NumberFormat)


def test_equal_settings_have_equal_fingerprints() -> None:
    assert EngineConfig(model="m", policy="exact").fingerprint == EngineConfig(model="m", policy="exact").fingerprint
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
