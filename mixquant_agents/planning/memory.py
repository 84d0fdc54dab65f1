"""What of a GPU's memory is left for KV cache: weights, the twin of those that are quantized, and what vLLM takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.planning.aiconfigurator import package_folder

__all__ = ["EngineMemory", "engine_memory", "heads_of", "linear_weights"]

TWIN_BYTES = {"exact": 0.0, "fp8": 1.0, "nvfp4": 0.5625}
"""Bytes of a twin's weight: codes, and for NVFP4 a scale for each 16."""
UTILIZATION, OVERHEAD_GIB = 0.9, 5.0
"""vLLM's ``gpu_memory_utilization``, and activations, graphs and context of one GPU."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """KV cache of one engine."""

    kv_tokens: int
    kv_bytes_per_token: int


def engine_memory(model: str, gpu: str, prefill: str, decode: str, gpus: int = 1) -> EngineMemory:
    """KV cache of an engine on ``gpus`` such GPUs.

    Raises:
        ConfigError: the model's or the GPU's figures are not known, or it does not fit.
    """
    config, memory = _config(model), _gpu_bytes(gpu)
    _, heads, width = heads_of(config)
    linear = linear_weights(config)
    embedding = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    exact = 2.0 if decode == "exact" else TWIN_BYTES[decode]
    twin = TWIN_BYTES[prefill] if prefill != decode else 0.0
    weights = 2 * embedding + linear * (exact + twin)
    each_token = 2 * 2 * config["num_hidden_layers"] * heads * width
    room = gpus * (UTILIZATION * memory - OVERHEAD_GIB * GIB) - weights
    if room < 1024 * each_token:
        raise ConfigError(
            f"{model!r} takes {weights / GIB:.0f} GiB of weights and leaves no room for KV cache on {gpus} {gpu}; "
            "give an engine more --gpus"
        )
    return EngineMemory(int(room / each_token), each_token)


def heads_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, key-value heads, and their width."""
    query = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // query
    return query, config.get("num_key_value_heads") or query, width


def linear_weights(config: Mapping[str, Any]) -> int:
    """Weights of the Linear layers inside the blocks, experts included."""
    query, cached, width = heads_of(config)
    experts = config.get("num_experts") or 0
    inner = config["intermediate_size"] if _dense_mlp(config) else 0
    mlp = 3 * (inner + experts * config.get("moe_intermediate_size", 0))
    return int(config["num_hidden_layers"] * config["hidden_size"] * (width * 2 * (query + cached) + mlp))


def _dense_mlp(config: Mapping[str, Any]) -> bool:
    """Whether every layer has an MLP that all rows pass: Gemma 4 has one beside its experts."""
    return not config.get("num_experts") or "enable_moe_block" in config


def _root() -> Path:
    folder = package_folder()
    if folder is None:
        raise MissingDependencyError(
            "memory of other devices needs aiconfigurator-core; install mixquant-agents[plan], or give --kv-tokens and "
            "--steps"
        )
    return folder


def _config(model: str) -> dict[str, Any]:
    path = Path(model) / "config.json"
    if not path.is_file():
        path = _root() / "model_configs" / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        raise ConfigError(f"aiconfigurator-core has no configuration of {model!r}; give a model's folder")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def _gpu_bytes(gpu: str) -> float:
    import yaml

    path = _root() / "systems" / f"{gpu}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*_*.yaml") if "lane" not in each.stem)
        raise ConfigError(f"--gpu {gpu!r} is not known; aiconfigurator-core has {', '.join(known)}")
    values = yaml.safe_load(path.read_text())
    return float(values["gpu"]["mem_capacity"])
