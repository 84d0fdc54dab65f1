"""Shapes of models that speed is measured on with random weights: a configuration is all an engine needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError

__all__ = ["SHAPES", "checkpoint_tensors", "model_folder", "write_model"]


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


def _qwen3_moe(
    hidden: int, inner: int, layers: int, heads: int, experts: int, chosen: int, *, tied: bool
) -> dict[str, Any]:
    """Of Qwen3-30B-A3B's kind: every layer's MLP is a mixture of experts of ``inner`` values."""
    return {
        **_qwen3(hidden, 3 * hidden, layers, heads, tied=tied),
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_key_value_heads": 4,
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
    }


def _gemma4_moe(hidden: int, dense: int, inner: int, layers: int, heads: int, experts: int) -> dict[str, Any]:
    """Of Gemma-4-26B-A4B's text model: each block has an MLP of ``dense`` values beside its experts of ``inner``."""
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "hidden_size": hidden,
        "intermediate_size": dense,
        "moe_intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "num_global_key_value_heads": max(1, heads // 8),
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "layer_types": [
            "full_attention" if layer % 6 == 5 or layer == layers - 1 else "sliding_attention"
            for layer in range(layers)
        ],
        "enable_moe_block": True,
        "num_experts": experts,
        "top_k_experts": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-30b-a3b": _qwen3_moe(2048, 768, 48, 32, 128, 8, tied=False),
    "gemma-4-26b-a4b": _gemma4_moe(2816, 2112, 704, 30, 16, 128),
    "qwen3-tiny": _qwen3(1024, 3072, 4, 16, tied=True),  # starts fast: for trying an installation
    "qwen3-moe-tiny": _qwen3_moe(1024, 512, 4, 16, 16, 4, tied=True),
}


def write_model(shape: str, folder: Path) -> Path:
    """A folder that vLLM takes as a model with ``load_format="dummy"``.

    Raises:
        ConfigError: no such shape.
    """
    if shape not in SHAPES:
        raise ConfigError(f"no model shape {shape!r}; choose one of {', '.join(SHAPES)}, or give a model folder")
    target = folder / shape
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    return target


def model_folder(model: str, scratch: Path, tokenizer: Path | None) -> Path:
    """The shape's folder with a tokenizer in it, and with its vocabulary: random weights may write any token.

    Raises:
        ConfigError: no such shape, or no folder of a tokenizer.
    """
    if tokenizer is None or not (tokenizer / "tokenizer.json").is_file():
        raise ConfigError(f"--model {model} is a shape, and needs --tokenizer with the folder of a tokenizer.json")
    folder = write_model(model, scratch)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    described = json.loads((tokenizer / "tokenizer.json").read_text())
    ids = [*described["model"]["vocab"].values(), *(token["id"] for token in described.get("added_tokens", ()))]
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": max(ids) + 1, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def checkpoint_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], float | None]]:
    """Names, sizes and standard deviations of the weights of a Qwen3 shape's checkpoint; ``None``: all ones.

    With these, logits scatter by about 3, and a router chooses among its experts evenly.
    """
    hidden, heads, cached, width = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    linears = {
        "self_attn.q_proj": (heads * width, hidden), "self_attn.k_proj": (cached * width, hidden),
        "self_attn.v_proj": (cached * width, hidden), "self_attn.o_proj": (hidden, heads * width),
    }  # fmt: skip
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    if "num_experts" in config:
        linears["mlp.gate"] = (config["num_experts"], hidden)
    for mlp in [f"mlp.experts.{expert}" for expert in range(config.get("num_experts", 0))] or ["mlp"]:
        linears |= {
            f"{mlp}.gate_proj": (inner, hidden),
            f"{mlp}.up_proj": (inner, hidden),
            f"{mlp}.down_proj": (hidden, inner),
        }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden,
             "self_attn.q_norm": width, "self_attn.k_norm": width}  # fmt: skip
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden), 3 / hidden**0.5
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden), 3 / hidden**0.5
    yield "model.norm.weight", (hidden,), None
    for layer in range(config["num_hidden_layers"]):
        for name, (n, k) in linears.items():
            yield f"model.layers.{layer}.{name}.weight", (n, k), k**-0.5
        for name, size in norms.items():
            yield f"model.layers.{layer}.{name}.weight", (size,), None
