"""Trained heads that were not trained: random weights in the form of an EAGLE-3 head and of a model with an MTP layer.

They guess badly, which does not matter: what is looked at is that drafts of either kind are verified by exact rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["write_eagle3", "write_mtp_model"]

MTP: dict[str, Any] = {
    "architectures": ["MiMoForCausalLM"],
    "model_type": "qwen2",  # MiMo is a Qwen2 with further layers, and transformers knows no model type of its own
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 128,  # so small that some guesses are right
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_eagle3(target: Path, folder: Path) -> Path:
    """An EAGLE-3 head for the Llama-like model in ``target``, in a new folder below ``folder``."""
    config = json.loads((target / "config.json").read_text())
    hidden, width = config["hidden_size"], _width(config)
    own = {
        name: config[name]
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
                     "max_position_embeddings", "rms_norm_eps")
    }  # fmt: skip
    own |= {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1, "head_dim": width,
        "draft_vocab_size": config["vocab_size"], "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "hidden_act": "silu",
    }  # fmt: skip
    sizes = _block(own, width, reads=2 * hidden)
    weights = {f"midlayer.{name}.weight": size for name, size in sizes.items()}
    weights |= {
        "midlayer.hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
        "fc.weight": (hidden, 3 * hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    return _write(folder / "eagle3", own, weights)


def write_mtp_model(folder: Path) -> Path:
    """A small model with one MTP layer, in a new folder below ``folder``."""
    hidden, width = MTP["hidden_size"], _width(MTP)
    weights: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (MTP["vocab_size"], hidden),
        "lm_head.weight": (MTP["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    blocks = [f"model.layers.{layer}" for layer in range(MTP["num_hidden_layers"])]
    for block in [*blocks, "model.mtp_layers.0"]:
        weights |= {f"{block}.{name}.weight": size for name, size in _block(MTP, width, reads=hidden).items()}
        weights |= {f"{block}.self_attn.{name}_proj.bias": (heads * width,) for name, heads in _heads(MTP).items()}
    for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        weights[f"model.mtp_layers.0.{norm}.weight"] = (hidden,)
    weights["model.mtp_layers.0.input_proj.weight"] = (hidden, 2 * hidden)
    return _write(folder / "mtp", MTP, weights)


def _width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        "q": config["num_attention_heads"],
        "k": config["num_key_value_heads"],
        "v": config["num_key_value_heads"],
    }


def _block(config: Mapping[str, Any], width: int, reads: int) -> dict[str, tuple[int, ...]]:
    """Sizes of a decoder layer's weights, whose attention reads vectors of ``reads``."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        **{f"self_attn.{name}_proj": (heads * width, reads) for name, heads in _heads(config).items()},
        "self_attn.o_proj": (hidden, config["num_attention_heads"] * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def _write(folder: Path, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(3)
    tensors = {name: _drawn(name, size, generator) for name, size in sizes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def _drawn(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms are ones, biases none; logits scatter by about 3."""
    if len(size) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(size, dtype=torch.bfloat16)
    scale = (3.0 if "lm_head" in name or "embed" in name else 1.0) * size[1] ** -0.5
    return (torch.randn(size, generator=generator) * scale).to(torch.bfloat16)
