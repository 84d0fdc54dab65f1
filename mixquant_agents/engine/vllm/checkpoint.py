"""The checkpoint, looked at before any process starts: does it exist, is it whole, how large are context and KV cache.

A truncated download is found here in milliseconds, by name, instead of after half a minute inside a worker's traceback.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.context_window import LENGTH_KEYS
from mixquant_agents.errors import DamagedWeightsError, ModelNotFoundError

__all__ = [
    "check_folder",
    "check_hub",
    "check_weights",
    "context_length",
    "kv_bytes_per_token",
    "looks_local",
    "model_config",
    "model_path",
]

_HUB_SECONDS = 10.0


def model_path(config: EngineConfig) -> tuple[str, bool]:
    """Folder or hub id that vLLM shall load, and whether it is a folder; the embedded model is prepared on the way.

    Raises:
        ModelNotFoundError: a local path is named and is no folder with a ``config.json``.
        DamagedWeightsError: a local weight file is truncated or missing, or the description is no JSON.
    """
    if config.model == "embedded":
        from mixquant_agents.embedded import prepare

        folder = Path(prepare())
    elif not looks_local(config.model):
        return config.model, False
    else:
        folder = Path(config.model).expanduser()
    _check_exists(folder)
    described = [folder / name for name in ("config.json", "params.json") if (folder / name).is_file()]
    if not described:
        raise ModelNotFoundError(f"model folder {str(folder)!r} holds no config.json, so it is not a model")
    try:
        json.loads(described[0].read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedWeightsError(f"{described[0]} is unreadable ({error}); download the model again") from error
    check_weights(folder)
    return str(folder), True


def check_folder(config: EngineConfig) -> None:
    """Look whether a local model is there at all, before anything is said to start.

    Raises:
        ModelNotFoundError: a local path is named, and there is no such folder.
    """
    if config.model != "embedded" and looks_local(config.model):
        _check_exists(Path(config.model).expanduser())


def _check_exists(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFoundError(f"model folder {str(folder)!r} does not exist; give a folder, a hub id or 'embedded'")


def check_hub(config: EngineConfig) -> None:
    """Ask the hub once, with a time limit, whether the model exists; vLLM would ask again and again for minutes.

    Raises:
        ModelNotFoundError: neither the hub nor the local cache has the model at this revision.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if os.environ.get("VLLM_USE_MODELSCOPE"):  # another hub, which vLLM asks by itself
        return
    for name in ("config.json", "params.json"):
        if isinstance(try_to_load_from_cache(config.model, name, revision=config.revision), str):
            return
    try:
        HfApi().model_info(config.model, revision=config.revision, timeout=_HUB_SECONDS)
    except Exception as error:  # the client has a class for each way to fail, over several HTTP libraries
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ModelNotFoundError(
            f"model {config.model!r} (revision {config.revision or 'main'!r}) cannot be found or reached ({cause}); "
            "check the name and the network, or give a local folder"
        ) from error


def looks_local(name: str) -> bool:
    """Whether a model's name is a folder's, and no hub id."""
    return name.startswith(("/", ".", "~")) or os.path.isdir(name) or name.count("/") > 1


def check_weights(folder: Path) -> None:
    """Compare each safetensors file's header with its size (safetensors format: 8-byte length, JSON, data).

    Raises:
        DamagedWeightsError: a file is missing, its header is unreadable, or its size is not what the header says.
    """
    paths = set(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise DamagedWeightsError(f"{index} is unreadable ({error}); download the model again") from error
        paths |= {folder / str(name) for name in names}
    for path in sorted(paths):
        if not path.is_file():
            raise DamagedWeightsError(f"weight file {path} is missing; download the model again")
        actual, expected = path.stat().st_size, _expected_size(path)
        if actual != expected:
            raise DamagedWeightsError(
                f"weight file {path} has {actual} bytes, its header says {expected}; download the model again"
            )


def _expected_size(path: Path) -> int:
    """Bytes that the header of a safetensors file announces."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(path.stat().st_size, 100_000_000):
                raise ValueError(f"a header of {length} bytes does not fit into it")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DamagedWeightsError(f"weight file {path} has no readable header ({error}); download it again") from error
    return 8 + length + int(max(ends, default=0))


def model_config(path: str, config: EngineConfig) -> Any:
    """The checkpoint's text configuration (a transformers ``PretrainedConfig``)."""
    from vllm.transformers_utils.config import get_config

    loaded = get_config(path, config.trust_remote_code, config.revision)
    return loaded.get_text_config() if hasattr(loaded, "get_text_config") else loaded


def context_length(text: Any) -> int | None:
    """Longest context in tokens that the checkpoint was made for; ``None`` when it does not say."""
    lengths = [value for key in LENGTH_KEYS if isinstance(value := getattr(text, key, None), int)]
    return min(lengths) if lengths else None


def kv_bytes_per_token(text: Any, bytes_per_value: int) -> int | None:
    """Bytes of one token in the KV cache (keys and values of all layers); ``None`` when the shape is not given.

    Layers with shapes of their own (Gemma 4: transformers refuses to read ``head_dim`` for all of them) are added up.
    """
    if getattr(text, "is_heterogeneous", False):
        values = [_kv_values(layer) for layer in text.per_layer_config]
    else:
        values = [_kv_values(text)] * (getattr(text, "num_hidden_layers", None) or 0)
    if not values or None in values:
        return None
    return bytes_per_value * sum(value for value in values if value is not None)


def _kv_values(layer: Any) -> int | None:
    """Keys and values of one token in one layer."""
    heads = getattr(layer, "num_attention_heads", None)
    kv_heads = getattr(layer, "num_key_value_heads", None) or heads
    width = getattr(layer, "head_dim", None)
    if width is None and heads and getattr(layer, "hidden_size", None):
        width = layer.hidden_size // heads
    return int(2 * kv_heads * width) if kv_heads and width else None
