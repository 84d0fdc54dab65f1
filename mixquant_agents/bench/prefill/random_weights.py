"""Random weights that an engine loads as those of a checkpoint: tensor by tensor, by the model's own loader.

vLLM's ``load_format="dummy"`` writes numbers below 0.001 into whatever lies in memory, norms among them, and quantizes
some layers in another way than loaded ones. That does for layers whose work does not depend on values. Which experts a
row visits does: so mixtures get these weights, in every column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mixquant_agents.bench.shapes import checkpoint_tensors

__all__ = ["LOAD_FORMAT", "random_tensors", "register_loader"]

LOAD_FORMAT = "mixquant-random"
_SEED = 5


def random_tensors(config: dict[str, Any], device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and bfloat16 tensor of all weights of a shape, the same ones on each kind of device."""
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, size, scale in checkpoint_tensors(config):
        if scale is None:
            yield name, torch.ones(size, dtype=torch.bfloat16, device=device)
        else:
            drawn = torch.randn(size, generator=generator, dtype=torch.float32, device=device)
            yield name, (drawn * scale).to(torch.bfloat16)


def register_loader() -> None:
    """Have vLLM know :data:`LOAD_FORMAT` in this process. Idempotent."""
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    if LOAD_FORMAT in _LOAD_FORMAT_TO_MODEL_LOADER:
        return

    class RandomLoader(BaseModelLoader):  # type: ignore[misc] # vllm is untyped here
        def download_model(self, model_config: Any) -> None:
            """Nothing to fetch."""

        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            config = json.loads((Path(model_config.model) / "config.json").read_text())
            devices = {each.device for each in model.parameters()} - {torch.device("meta")}  # of layers quantized later
            model.load_weights(random_tensors(config, max(devices, key=lambda device: device.type != "cpu")))

    register_model_loader(LOAD_FORMAT)(RandomLoader)
