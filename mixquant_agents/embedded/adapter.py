"""The tool-use adapter (LoRA, PEFT's file format), merged without PEFT: ``W ← W + (alpha / r) · B · A`` in float32."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from mixquant_agents.errors import DamagedWeightsError

__all__ = ["adapter_folder", "adapter_identity", "merge"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def adapter_folder() -> pathlib.Path | None:
    """The adapter that ships with this package, or ``None`` where none does."""
    folder = pathlib.Path(__file__).with_name("adapter")
    return folder if (folder / CONFIG).is_file() else None


def adapter_identity(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the adapter's two files: what the cache key holds of it.

    Raises:
        DamagedWeightsError: a file is missing.
    """
    try:
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}
    except OSError as error:
        raise DamagedWeightsError(
            f"the adapter in {folder} is incomplete: {error}; install mixquant-agents again"
        ) from error


def merge(model: Any, folder: pathlib.Path) -> int:
    """Add the adapter to the model's weights in place.

    Per Linear, ``lora_A`` is ``[r, in]`` and ``lora_B`` is ``[out, r]``, in any float type.

    Returns:
        How many Linear layers were changed.

    Raises:
        DamagedWeightsError: the file cannot be read, or does not fit the model.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text())
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise DamagedWeightsError(
            f"the adapter in {folder} cannot be read ({type(error).__name__}: {error}); install mixquant-agents again"
        ) from error
    modules = dict(model.named_modules())
    names = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    if not names or len(tensors) != 2 * len(names):
        raise DamagedWeightsError(f"the adapter in {folder} does not hold pairs of lora_A and lora_B weights")
    for name in names:
        module = modules.get(name.removeprefix(_PREFIX))
        down, up = tensors[f"{name}.lora_A.weight"], tensors.get(f"{name}.lora_B.weight")
        fits = (
            isinstance(module, torch.nn.Linear)
            and up is not None
            and up.shape[1] == down.shape[0]
            and (up.shape[0], down.shape[1]) == tuple(module.weight.shape)
        )
        if not fits or module is None or up is None:
            raise DamagedWeightsError(f"the adapter's weights for {name!r} do not fit the embedded model")
        delta = scale * (up.float() @ down.float())
        with torch.no_grad():
            module.weight.add_(delta.to(module.weight.dtype))
    return len(names)
