"""Weights for ``check_engines``: random ones in a file, and those of a model in another order."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mixquant_agents.bench.shapes import SHAPES, write_model


def random_model(shape: str, folder: Path) -> Path:
    """A shape with weights in a file, so that every rank takes its part of the same ones; logits scatter by about 3."""
    path = write_model(shape, folder)
    c, random = SHAPES[shape], torch.Generator().manual_seed(5)
    hidden, heads, cached, width = (
        c[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    linears = {
        "self_attn.q_proj": (heads * width, hidden), "self_attn.k_proj": (cached * width, hidden),
        "self_attn.v_proj": (cached * width, hidden), "self_attn.o_proj": (hidden, heads * width),
    }  # fmt: skip
    inner = c.get("moe_intermediate_size", c["intermediate_size"])
    if "num_experts" in c:
        linears["mlp.gate"] = (c["num_experts"], hidden)
    for mlp in [f"mlp.experts.{expert}" for expert in range(c.get("num_experts", 0))] or ["mlp"]:
        linears |= {
            f"{mlp}.gate_proj": (inner, hidden),
            f"{mlp}.up_proj": (inner, hidden),
            f"{mlp}.down_proj": (hidden, inner),
        }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden,
             "self_attn.q_norm": width, "self_attn.k_norm": width}  # fmt: skip
    tensors = {"model.embed_tokens": 3 * torch.randn(c["vocab_size"], hidden, generator=random) / hidden**0.5,
               "model.norm": torch.ones(hidden)}  # fmt: skip
    for layer in range(c["num_hidden_layers"]):
        for name, (n, k) in linears.items():
            tensors[f"model.layers.{layer}.{name}"] = torch.randn(n, k, generator=random) / k**0.5
        tensors |= {f"model.layers.{layer}.{name}": torch.ones(size) for name, size in norms.items()}
    save_file({f"{name}.weight": each.to(torch.bfloat16) for name, each in tensors.items()}, path / "model.safetensors")
    return path


def disturbed(path: Path, folder: Path) -> Path:
    """The model with the rows of every Linear weight in reverse order."""
    out = folder / "disturbed"
    out.mkdir(exist_ok=True)
    shutil.copy(path / "config.json", out)
    weights = load_file(path / "model.safetensors")
    flipped = {
        name: each.flip(0).contiguous() if name.endswith("_proj.weight") else each for name, each in weights.items()
    }
    save_file(flipped, out / "model.safetensors")
    return out
