"""Weights for ``check_engines``: random ones in a file, and those of a model in another order."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mixquant_agents.bench.prefill.random_weights import random_tensors
from mixquant_agents.bench.shapes import SHAPES, write_model


def random_model(shape: str, folder: Path) -> Path:
    """A shape with weights in a file, so that every rank takes its part of the same ones; logits scatter by about 3."""
    path = write_model(shape, folder)
    save_file(dict(random_tensors(SHAPES[shape], torch.device("cpu"))), path / "model.safetensors")
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
