"""Twins from a pre-quantized NVFP4 checkpoint of the same model: ``PrecisionPolicy.prefill_checkpoint``.

Two layouts are read, distinguished by tensor names; both hold codes, uint8 ``[N, K/2]``, and block scales, E4M3
``[N, K/16]``:

- compressed-tensors: ``X.weight_packed``, ``X.weight_scale``, ``X.weight_global_scale`` (encodes; decoding divides)
- ModelOpt: ``X.weight`` (uint8), ``X.weight_scale``, ``X.weight_scale_2`` (decoding multiplies)

Scales for activations that such checkpoints hold are not used: activations are scaled per token here. Names and shapes
are checked from the files' headers, before any weights are loaded.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import torch

from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.quant.numerics.nvfp4 import BLOCK, Nvfp4Tensor

__all__ = ["TwinCheckpoint"]


class TwinCheckpoint:
    """The quantized Linear layers of a checkpoint, by name."""

    def __init__(self, location: str) -> None:
        """
        Args:
            location: a folder, or a hub id whose files are fetched or found in the hub's cache.

        Raises:
            FormatRefusedError: there is no such checkpoint, or it holds no safetensors files.
        """
        self.location = location
        self._files = _index(_folder(location), location)
        self._open: dict[pathlib.Path, Any] = {}

    def check(self, names: Sequence[str], rows: int, columns: int) -> None:
        """Refuse unless ``names`` together are a quantized ``[rows, columns]``; reads headers alone.

        Raises:
            FormatRefusedError: names the tensor that is missing or has another shape or type.
        """
        total_rows = 0
        for name in names:
            packed, scale, _ = self._tensors(name)
            codes, scales = self._slice(packed), self._slice(scale)
            if codes.get_dtype() != "U8":
                raise self._refused(packed, f"is {codes.get_dtype()}, not packed codes (U8)")
            n, half = codes.get_shape()
            if half * 2 != columns:
                raise self._refused(packed, f"has {half * 2} columns, the model's layer {columns}")
            shape = [n, columns // BLOCK]
            if scales.get_shape() != shape or scales.get_dtype() != "F8_E4M3":
                raise self._refused(
                    scale, f"is {scales.get_dtype()} {scales.get_shape()}, not F8_E4M3 {shape}: not blocks of {BLOCK}"
                )
            total_rows += n
        if total_rows != rows:
            raise self._refused(" + ".join(names), f"have {total_rows} rows together, the model's layer {rows}")

    def read(self, names: Sequence[str]) -> Nvfp4Tensor:
        """The tensors ``names``, one below the other.

        Returns:
            global scale float32 ``[]`` where all parts have the same, else ``[R, 1]``.
        """
        parts = [self._read(name) for name in names]
        scales = torch.cat([part.global_scale.reshape(1) for part in parts])
        together = scales[0]
        if (scales != scales[0]).any():
            rows = torch.tensor([part.packed.shape[0] for part in parts])
            together = scales.repeat_interleave(rows).unsqueeze(1)
        packed, block_scales = torch.cat([p.packed for p in parts]), torch.cat([p.scales for p in parts])
        return Nvfp4Tensor(packed, block_scales, together, packed.shape[1] * 2)

    def refused_weights(self, prefix: str) -> ConfigError:
        """The error for a layer ``prefix`` whose weights, loaded anew, are others than those these twins belong to."""
        return ConfigError(
            f"the weights loaded anew for {prefix!r} are others than this engine started with, and "
            f"prefill_checkpoint={self.location!r} holds no twins of them; start another engine, with a checkpoint of "
            "the new weights or without one: twins made here follow their weights"
        )

    def _read(self, name: str) -> Nvfp4Tensor:
        packed, scale, global_scale = (self._file(key).get_tensor(key) for key in self._tensors(name))
        encodes = f"{name}.weight_packed" in self._files
        number = global_scale.float().flatten()[0]
        return Nvfp4Tensor(packed, scale, number if encodes else 1.0 / number, packed.shape[1] * 2)

    def _tensors(self, name: str) -> tuple[str, str, str]:
        """Names of codes, block scales and global scale."""
        for names in (
            (f"{name}.weight_packed", f"{name}.weight_scale", f"{name}.weight_global_scale"),
            (f"{name}.weight", f"{name}.weight_scale", f"{name}.weight_scale_2"),
        ):
            if names[0] in self._files:
                missing = [key for key in names if key not in self._files]
                if missing:
                    raise self._refused(missing[0], "is missing, so this layer is not NVFP4 there")
                return names
        raise self._refused(f"{name}.weight_packed", f"is missing, and so is {name}.weight")

    def _refused(self, tensor: str, why: str) -> FormatRefusedError:
        return FormatRefusedError(
            f"prefill_checkpoint={self.location!r} does not match the model: {tensor} {why}; give a NVFP4 checkpoint "
            "of this very model (compressed-tensors or ModelOpt), name the layer in ignored_layers, or leave it out"
        )

    def _slice(self, key: str) -> Any:
        return self._file(key).get_slice(key)

    def _file(self, key: str) -> Any:
        from safetensors import SafetensorError, safe_open

        path = self._files[key]
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise FormatRefusedError(
                    f"prefill_checkpoint={self.location!r}: {path.name} cannot be read ({error})"
                ) from None
        return self._open[path]


def _folder(location: str) -> pathlib.Path:
    path = pathlib.Path(location).expanduser()
    if path.is_dir():
        return path
    try:
        from huggingface_hub import snapshot_download

        return pathlib.Path(snapshot_download(location, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FormatRefusedError(
            f"prefill_checkpoint={location!r} is neither a folder nor on the hub ({reason}); check the name, or leave "
            "it out to quantize the model's own weights"
        ) from None


def _index(folder: pathlib.Path, location: str) -> dict[str, pathlib.Path]:
    """Tensor names and the files that hold them."""
    from safetensors import SafetensorError, safe_open

    listing = folder / "model.safetensors.index.json"
    if listing.is_file():
        try:
            listed = {name: folder / file for name, file in json.loads(listing.read_text())["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatRefusedError(
                f"prefill_checkpoint={location!r}: {listing.name} cannot be read ({type(error).__name__}: {error})"
            ) from None
        if absent := sorted({path.name for path in listed.values() if not path.is_file()}):
            raise FormatRefusedError(f"prefill_checkpoint={location!r} is incomplete: {absent[0]} is not there")
        return listed
    files: dict[str, pathlib.Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise FormatRefusedError(f"prefill_checkpoint={location!r}: {path.name} cannot be read ({error})") from None
    if not files:
        raise FormatRefusedError(f"prefill_checkpoint={location!r} holds no *.safetensors files")
    return files
