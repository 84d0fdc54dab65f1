"""Which layers are routed, and how they are left out by name."""

from __future__ import annotations

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.layer_filter import in_block, is_ignored

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


def test_part_of_a_fused_layer_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"q_proj but not .*k_proj, .*v_proj.*one layer"):
        is_ignored("model.layers.0.self_attn.qkv_proj", ("q_proj",), FUSED)


def test_wrong_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match="no regular expression"):
        is_ignored("model.layers.0.mlp.down_proj", ("re:(",), FUSED)
