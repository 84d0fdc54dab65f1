"""Low-rank updates of all Linear weights, and their file in PEFT's format.

The file is ``bfloat16``, or ``float8_e4m3fn``: twice the rank in the same bytes. Its rounding changes the update by a few
percent, which training already sees (:func:`_kept`).
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import NamedTuple

import torch
from torch import Tensor

from mixquant_training.model import CONFIG, LINEARS, Weights

__all__ = ["FORMATS", "Adapter", "grown", "load", "merged", "save"]


class Format(NamedTuple):
    """Of the file: its dtype, and what A and B are multiplied by in it, so that they lie in the middle of its range;
    ``lora_alpha`` undoes that."""

    dtype: torch.dtype
    gains: tuple[float, float]


FORMATS = {"bfloat16": Format(torch.bfloat16, (1.0, 1.0)), "float8": Format(torch.float8_e4m3fn, (64.0, 256.0))}


def _rounded(tensor: Tensor, dtype: torch.dtype, gain: float) -> Tensor:
    """As it is written: ``tensor · gain`` in ``dtype``, saturated."""
    most = torch.finfo(dtype).max
    return (tensor * gain).clamp(-most, most).to(dtype)


def _kept(tensor: Tensor, dtype: torch.dtype, gain: float) -> Tensor:
    """What the file will give back; the gradient passes as if it were exact (straight through)."""
    return tensor + (_rounded(tensor.detach(), dtype, gain).to(tensor.dtype) / gain - tensor.detach())


class Adapter(torch.nn.Module):  # type: ignore[misc] # torch is untyped here
    """Per matrix ``A [layers, rank, in]`` and ``B [layers, out, rank]``, float32; ``W + scale · B · A``."""

    def __init__(self, rank: int, scale: float, seed: int = 0, stored: str = "bfloat16") -> None:
        super().__init__()
        self.stored = stored
        generator = torch.Generator().manual_seed(seed)
        self.rank, self.scale = rank, scale
        self.down = torch.nn.ParameterDict()
        self.up = torch.nn.ParameterDict()
        for name, (rows, columns) in LINEARS.items():
            start = torch.randn(CONFIG.layers, rank, columns, generator=generator) / columns**0.5
            self.down[name.replace(".", "-")] = torch.nn.Parameter(start)
            self.up[name.replace(".", "-")] = torch.nn.Parameter(torch.zeros(CONFIG.layers, rows, rank))

    def delta(self, name: str) -> Tensor:
        """``scale · B · A`` of all layers, ``[layers, out, in]``."""
        key = name.replace(".", "-")
        dtype, gains = FORMATS[self.stored]
        down, up = (_kept(part[key], dtype, gain) for part, gain in zip((self.down, self.up), gains, strict=True))
        return self.scale * torch.bmm(up, down)


@torch.no_grad()  # type: ignore[untyped-decorator] # torch is untyped here
def grown(adapter: Adapter, rank: int, stored: str) -> Adapter:
    """The same update with a larger rank, whose new room starts at zero.

    Raises:
        ValueError: a smaller rank.
    """
    if rank < adapter.rank:
        raise ValueError(f"rank {rank} is smaller than the adapter's {adapter.rank}; give that or a larger one")
    other = Adapter(rank, adapter.scale, 1, stored)
    for key, down in other.down.items():
        down[:, : adapter.rank], other.up[key][..., : adapter.rank] = adapter.down[key], adapter.up[key]
    return other


def merged(base: Weights, adapter: Adapter, dtype: torch.dtype) -> Weights:
    """The base with the update added in float32, then cast. Differentiable in the adapter."""
    linear = {name: (weight.float() + adapter.delta(name)).to(dtype) for name, weight in base.linear.items()}
    return Weights(base.embedding.to(dtype), linear, base.norm1.to(dtype), base.norm2.to(dtype), base.norm.to(dtype))


def save(adapter: Adapter, folder: pathlib.Path, base: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> int:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; return the size in bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    dtype, gains = FORMATS[adapter.stored]
    for letter, part, gain in zip("AB", (adapter.down, adapter.up), gains, strict=True):
        for name in LINEARS:
            written = _rounded(part[name.replace(".", "-")].detach(), dtype, gain).cpu()
            for layer in range(CONFIG.layers):
                tensors[f"base_model.model.model.layers.{layer}.{name}.lora_{letter}.weight"] = written[layer].clone()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    scale = adapter.scale / math.prod(gains)
    config = {
        "base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "lora_alpha": scale * adapter.rank, "lora_dropout": 0.0, "peft_type": "LORA", "r": adapter.rank,
        "target_modules": [name.split(".")[1] for name in LINEARS], "task_type": "CAUSAL_LM", "use_dora": False, "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return (folder / "adapter_model.safetensors").stat().st_size


def load(folder: pathlib.Path) -> Adapter:
    """The adapter of a folder written by :func:`save`."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    dtype = next(iter(tensors.values())).dtype
    stored, gains = next((name, each.gains) for name, each in FORMATS.items() if each.dtype == dtype)
    scale = config["lora_alpha"] / config["r"] * math.prod(gains)
    adapter = Adapter(config["r"], scale, stored=stored)
    with torch.no_grad():
        for name in LINEARS:
            key = name.replace(".", "-")
            for layer in range(CONFIG.layers):
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                adapter.down[key][layer] = tensors[f"{prefix}.lora_A.weight"].float() / gains[0]
                adapter.up[key][layer] = tensors[f"{prefix}.lora_B.weight"].float() / gains[1]
    return adapter
