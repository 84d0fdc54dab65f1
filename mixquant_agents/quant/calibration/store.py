"""Calibrations on disk: one folder for each model, one file for each way of rounding, computed once.

``CACHE/calibration-MODEL-KEY/``: ``scales.safetensors`` (scales of activations, and channels by rank),
``gptq.safetensors``, ``gptq-behind.safetensors``, and each with ``-w46`` (the same, and rounded
twins), ``balanced.safetensors`` and each with ``-balanced`` (channel scales too). The key is of
the model's configuration and its weight files, so that a changed checkpoint has another folder. Nothing random is in
it: the same model and the same package give the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mixquant_agents.embedded.store import cache_root
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.recipe import FIRST_TOKENS, Recipe
from mixquant_agents.quant.numerics.nvfp4 import Nvfp4Tensor
from mixquant_agents.quant.twins.calibrated import LayerCalibration

__all__ = ["CHANNELS", "Calibration", "by_hand", "calibrate", "file_name", "folder_of", "save"]

CHANNELS = 1024
"""So many channels of each layer are ranked."""

_VERSION = "1"
"""Raised whenever the text, or what is made of it, changes."""


def file_name(recipe: Recipe) -> str:
    """The file that ``recipe`` reads."""
    if recipe.weight_rounding == "nearest":
        return "scales.safetensors" if recipe.channel_scales == "none" else "balanced.safetensors"
    parts = ["-w46" if recipe.weight_scales == "4/6" else "", "" if recipe.channel_scales == "none" else "-balanced"]
    return f"{recipe.weight_rounding}{''.join(parts)}.safetensors"


def by_hand(model: str, path: pathlib.Path) -> str:
    """The command line by which people make the file ``path`` of ``model``."""
    gptq = " --gptq" if path.name.startswith("gptq") else ""
    scales = " --weight-scales 4/6" if "w46" in path.name else ""
    behind = " --behind" if path.name.startswith("gptq-behind") else ""
    balanced = " --channel-scales balanced" if "balanced" in path.name else ""
    return f"mixquant calibrate {model}{gptq}{behind}{scales}{balanced}"


def folder_of(model: str | pathlib.Path) -> pathlib.Path:
    """Where the calibrations of the checkpoint in the folder ``model`` lie.

    Raises:
        ConfigError: it is no folder with a configuration.
    """
    where = pathlib.Path(model).expanduser()
    config = where / "config.json"
    if not config.is_file():
        raise ConfigError(
            f"calibration='auto' needs a model folder with a config.json, and {str(model)!r} is not one; name the "
            "folder that mixquant calibrate wrote"
        )
    digest = hashlib.sha256(_VERSION.encode() + config.read_bytes())
    for path in sorted(where.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(file.read())
    return cache_root() / f"calibration-{where.name}-{digest.hexdigest()[:16]}"


def save(folder: pathlib.Path, recipe: Recipe, calibrations: Mapping[str, LayerCalibration]) -> pathlib.Path:
    """Write a calibration whole or not at all; returns the file."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, own in calibrations.items():
        tensors[f"{name}.activation_scale"] = torch.tensor(own.activation_scale)
        if own.channels is not None:
            tensors[f"{name}.channels"] = own.channels[:CHANNELS].cpu().contiguous()
        if own.channel_scale is not None:
            tensors[f"{name}.channel_scale"] = own.channel_scale.cpu().contiguous()
        if own.twin is not None:
            tensors[f"{name}.packed"] = own.twin.packed.cpu().contiguous()
            tensors[f"{name}.scales"] = own.twin.scales.cpu().contiguous()
            tensors[f"{name}.global_scale"] = own.twin.global_scale.cpu().reshape(())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(recipe)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    save_file(tensors, partial, metadata={"version": _VERSION, "rounding": json.dumps(recipe.weight_rounding)})
    partial.rename(path)
    return path


class Calibration:
    """One file, read layer by layer."""

    def __init__(self, path: pathlib.Path) -> None:
        """
        Raises:
            FormatRefusedError: there is no such file, or it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        self.path = path
        if not path.is_file():
            raise FormatRefusedError(f"there is no calibration {path}; make it once with: {by_hand('MODEL', path)}")
        try:
            self._file: Any = safe_open(path, framework="pt")
            self._names = set(self._file.keys())  # type: ignore[no-untyped-call, unused-ignore] # safetensors is untyped
        except (OSError, SafetensorError) as error:
            raise FormatRefusedError(f"the calibration {path} cannot be read ({error}); make it again") from None

    @classmethod
    def of(cls, policy: PrecisionPolicy, model: str | None) -> Calibration | None:
        """What ``policy`` asks for; ``None`` where it asks for none.

        Raises:
            FormatRefusedError, ConfigError: it is not there.
        """
        if policy.calibration is None or not policy.quantizes:
            return None
        folder = folder_of(model or "") if policy.calibration == "auto" else pathlib.Path(policy.calibration)
        return cls(folder.expanduser() / file_name(policy.recipe))

    def layer(self, name: str, n: int, k: int) -> LayerCalibration:
        """Of the layer ``name``, as vLLM names it, ``[n, k]``.

        Raises:
            FormatRefusedError: it was not calibrated, or is another size here.
        """
        if f"{name}.activation_scale" not in self._names:
            raise FormatRefusedError(
                f"the calibration {self.path} has no layer {name!r}; it is another model's: calibrate this one, or "
                "name the layer in ignored_layers"
            )
        channels = self._tensor(name, "channels")
        if channels is not None and int(channels.max()) >= k:
            channels = None  # those of the unsharded layer
        twin = None
        if f"{name}.packed" in self._names:
            packed, scales = self._file.get_tensor(f"{name}.packed"), self._file.get_tensor(f"{name}.scales")
            if tuple(packed.shape) != (n, k // 2):
                raise FormatRefusedError(
                    f"the calibration {self.path} has {name!r} as {packed.shape[0]}x{packed.shape[1] * 2}, the engine "
                    f"as {n}x{k}; twins rounded by GPTQ are not sharded: use tensor_parallel_size=1, or "
                    "weight_rounding='nearest'"
                )
            twin = Nvfp4Tensor(packed, scales, self._file.get_tensor(f"{name}.global_scale"), k)
        scale = self._tensor(name, "channel_scale")
        if scale is not None and scale.numel() != k:
            raise FormatRefusedError(
                f"the calibration {self.path} has {scale.numel()} channel scales for {name!r}, the engine {k} inputs; "
                "they are not sharded: use tensor_parallel_size=1, or channel_scales='none'"
            )
        activation_scale = float(self._file.get_tensor(f"{name}.activation_scale"))
        return LayerCalibration(activation_scale, channels, twin, channel_scale=scale)

    def _tensor(self, name: str, leaf: str) -> torch.Tensor | None:
        key = f"{name}.{leaf}"
        return self._file.get_tensor(key) if key in self._names else None


Progress = Callable[[str, float], None]


def calibrate(
    model: str,
    recipe: Recipe,
    folder: pathlib.Path | None = None,
    *,
    count: int = 64,
    progress: Progress = lambda what, share: None,
) -> pathlib.Path:
    """Calibrate a model for ``recipe``; returns the folder.

    Args:
        model: ``"embedded"``, a folder, or a hub id with ``folder``.
        recipe: of which ``weight_rounding``, ``weight_scales`` and ``channel_scales`` count.
        folder: where to; the model's own in the cache where ``None``.
        count: conversations.
        progress: called with what is being done and the share done.
    """
    from mixquant_agents.quant.calibration.collect import collect, layer_calibrations
    from mixquant_agents.quant.calibration.contexts import conversations, plain_texts
    from mixquant_agents.quant.calibration.network import batches, load, prompt_ids

    if model == "embedded":
        from mixquant_agents.embedded import prepare

        model = str(prepare())
    target = folder or folder_of(model)
    progress("loading", 0.0)
    network, tokenizer = load(model)
    sequences = [list(tokenizer(text).input_ids) for text in plain_texts("calibration")]
    if tokenizer.chat_template is not None:
        asked = conversations(count, "calibration", turns=(2, 6))
        sequences += [prompt_ids(tokenizer, each.messages, each.tools) for each in asked]
    twins, scaled = recipe.weight_rounding != "nearest", recipe.channel_scales != "none"
    rows = 16_384 if network.device.type == "cuda" else 2048
    seen = collect(
        network,
        batches(sequences, network.device, rows),
        moments=twins or scaled,
        sampled=scaled,
        behind=FIRST_TOKENS if recipe.weight_rounding == "gptq-behind" else 0,
        progress=lambda share: progress("looking at activations", 0.05 + 0.45 * share),
    )
    made = layer_calibrations(
        network,
        seen,
        twins=twins,
        four_over_six=recipe.weight_scales == "4/6",
        channel_scales=scaled,
        progress=lambda share: progress("rounding weights", 0.5 + 0.5 * share),
    )
    save(target, recipe, made)
    progress("done", 1.0)
    return target
