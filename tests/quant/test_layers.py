"""Which layers are routed, and how they are left out by name."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.config import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.errors import ConfigError, UnknownPolicyError
from mixquant_agents.precision.layer_filter import in_block, is_ignored
from mixquant_agents.quant.vllm.method import MixQuantConfig, parse_policy

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.qkv_proj", True),
        ("model.layers.31.mlp.gate_up_proj", True),
        ("transformer.h.3.mlp.c_fc", True),
        ("lm_head", False),
        ("model.embed_tokens", False),
        ("visual.blocks.3.attn.qkv", False),
        ("vision_tower.encoder.layers.2.mlp.fc1", False),
        ("vpm.encoder.layers.0.self_attn.qkv_proj", False),  # MiniCPM-V
        ("apm.layers.0.fc1", False),  # MiniCPM-o
        ("visual_tokenizer.vit.encoder.layers.0.attn.qkv", False),  # Ovis
        ("whisper_encoder.layers.0.self_attn.qkv_proj", False),  # Voxtral
        ("transformer.encoder.layers.0.mlp.dense_h_to_4h", True),  # ChatGLM's language model
        ("model.decoder.layers.0.fc1", True),  # OPT's
        ("model.layers.1.mlp.gate", False),
        ("model.layers.1.self_attn.kv_b_proj", False),
    ],
)
def test_only_linear_layers_of_the_language_models_blocks(name: str, expected: bool) -> None:
    assert in_block(name) is expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), False),
        (("model.layers.0.self_attn.qkv_proj",), True),
        (("qkv_proj",), True),
        (("self_attn.qkv_proj",), True),
        (("v_qkv_proj",), False),
        (("q_proj", "k_proj", "v_proj"), True),
        (("re:.*self_attn.*",), True),
        ((r"re:model\.layers\.(0|31)\.",), True),
        ((r"re:model\.layers\.1\.",), False),
        (("re:.*[qkv]_proj$",), True),
    ],
)
def test_ignored_layers(patterns: tuple[str, ...], expected: bool) -> None:
    assert is_ignored("model.layers.0.self_attn.qkv_proj", patterns, FUSED) is expected


def test_a_part_of_a_fused_layer_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"q_proj but not .*k_proj, .*v_proj.*one layer"):
        is_ignored("model.layers.0.self_attn.qkv_proj", ("q_proj",), FUSED)


def test_a_wrong_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        is_ignored("model.layers.0.mlp.down_proj", ("re:(",), FUSED)


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


def test_the_configuration_survives_pickling_without_its_runtime() -> None:
    import pickle

    config = MixQuantConfig.from_config({"policy": "uniform-fp8"})
    config.packed_modules_mapping = FUSED
    config.runtime = lambda: None  # what a worker holds, and what cannot be pickled
    copy = pickle.loads(pickle.dumps(config))  # noqa: S301 - our own bytes
    assert copy.policy == POLICY_PRESETS["uniform-fp8"]
    assert copy.packed_modules_mapping == FUSED
    assert not hasattr(copy, "runtime")


def experts() -> torch.nn.Module:
    """An expert layer of the installed vLLM's own class, without its weights."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    found = RoutedExperts.__new__(RoutedExperts)
    torch.nn.Module.__init__(found)
    return found


@pytest.mark.parametrize("name", ["mixquant", "mixquant-fp8", "uniform-int8"])
def test_experts_have_no_twin_and_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"'model\.layers\.3\.mlp\.experts'.*ignored_layers.*policy 'exact'"):
        MixQuantConfig(POLICY_PRESETS[name]).get_quant_method(experts(), "model.layers.3.mlp.experts")


def test_experts_run_exact_where_the_user_says_so() -> None:
    left_out = PrecisionPolicy(prefill_format="fp8", ignored_layers=("re:.*experts",))
    for policy in (left_out, POLICY_PRESETS["exact"]):
        assert MixQuantConfig(policy).get_quant_method(experts(), "model.layers.3.mlp.experts") is None
