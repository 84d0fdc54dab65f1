"""The quantization method as vLLM meets it: its options, what it refuses, and how it travels to workers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mixquant_agents.config import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.errors import ConfigError, UnknownPolicyError
from mixquant_agents.quant.vllm.method import (
    MixQuantConfig,
    parse_policy,
    refuse_encoder,
    refuse_misplaced,
    refuse_parallel,
)

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def test_policies_in_a_quantization_config() -> None:
    fields = PrecisionPolicy(prefill_format="fp8", ignored_layers=("re:.*down_proj",))
    assert parse_policy({"quant_method": "mixquant"}) == POLICY_PRESETS["mixquant"]
    assert parse_policy({"quant_method": "mixquant", "policy": "uniform-int8"}) == POLICY_PRESETS["uniform-int8"]
    assert parse_policy({"quant_method": "mixquant", "policy": fields.model_dump(mode="json")}) == fields


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"polcy": "exact"}, ConfigError, "no setting 'polcy'"),
        ({"policy": "mixquant-fp4"}, UnknownPolicyError, "mixquant-fp4"),
        ({"policy": 4}, ConfigError, "policy = 4"),
        ({"policy": {"prefil_format": "fp8"}}, ConfigError, "prefil_format"),
    ],
)
def test_wrong_options_are_refused(config: dict[str, object], error: type[ConfigError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_policy(config)


def test_configuration_survives_pickling_without_its_runtime() -> None:
    import pickle

    config = MixQuantConfig.from_config({"policy": "uniform-fp8"})
    config.packed_modules_mapping = FUSED
    config.runtime = lambda: None  # what a worker holds, and what cannot be pickled
    copy = pickle.loads(pickle.dumps(config))  # noqa: S301 - our own bytes
    assert copy.policy == POLICY_PRESETS["uniform-fp8"]
    assert copy.packed_modules_mapping == FUSED
    assert not hasattr(copy, "runtime")


def old_experts() -> torch.nn.Module:
    """An expert layer as vLLM had it before 0.26: one module with router and experts."""

    class FusedMoE(torch.nn.Module):  # type: ignore[misc] # torch is untyped here
        """By its name."""

    return FusedMoE()


@pytest.mark.parametrize("name", ["mixquant", "mixquant-fp8", "uniform-int8"])
def test_experts_of_old_releases_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"'model\.layers\.3\.mlp\.experts'.*vLLM 0\.26.*ignored_layers.*'exact'"):
        MixQuantConfig(POLICY_PRESETS[name]).get_quant_method(old_experts(), "model.layers.3.mlp.experts")


def test_experts_of_old_releases_run_exact_where_the_user_says_so() -> None:
    left_out = PrecisionPolicy(prefill_format="fp8", ignored_layers=("re:.*experts",))
    for policy in (left_out, POLICY_PRESETS["exact"]):
        assert MixQuantConfig(policy).get_quant_method(old_experts(), "model.layers.3.mlp.experts") is None


@pytest.mark.parametrize("name", ["mixquant", "uniform-int8"])
def test_model_with_an_encoder_of_its_own_rows_is_refused(name: str) -> None:
    whisper = SimpleNamespace(is_encoder_decoder=True)
    with pytest.raises(ConfigError, match=r"encoder-decoder.*policy 'exact'"):
        refuse_encoder(whisper, PrecisionPolicy.of(name))
    refuse_encoder(whisper, PrecisionPolicy.of("exact"))
    refuse_encoder(SimpleNamespace(is_encoder_decoder=False), PrecisionPolicy.of(name))


def test_policy_where_nothing_reads_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'give {"quantization_config": {"quant_method": "mixquant", "policy": "x"}}'):
        refuse_misplaced(SimpleNamespace(hf_overrides={"policy": "x"}))
    for overrides in ({}, {"quantization_config": {"quant_method": "mixquant", "policy": "x"}}, lambda config: config):
        refuse_misplaced(SimpleNamespace(hf_overrides=overrides))


def test_ways_to_split_a_step_are_refused() -> None:
    refuse_parallel(SimpleNamespace(use_ubatching=False, prefill_context_parallel_size=1))
    with pytest.raises(ConfigError, match="enable_dbo"):
        refuse_parallel(SimpleNamespace(use_ubatching=True, prefill_context_parallel_size=1))
    with pytest.raises(ConfigError, match="prefill_context_parallel_size=2"):
        refuse_parallel(SimpleNamespace(use_ubatching=False, prefill_context_parallel_size=2))
