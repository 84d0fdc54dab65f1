"""What of a GPU's memory is left for KV cache: weights, the twin of those that are quantized, and what vLLM takes.

Where twins of a mixture's experts do not all fit, as many layers have one as an engine would give one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.aiconfigurator import gpus_in, model_config, tables_folder
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.experts.estimate import estimate, shape_of

__all__ = ["EngineMemory", "engine_memory", "heads_of", "linear_weights"]

TWIN_BYTES = {"exact": 0.0, "fp8": 1.0, "nvfp4": 0.5625}
"""Bytes of a twin's weight: codes, and for NVFP4 a scale for each 16."""
UTILIZATION, OVERHEAD_GIB = 0.9, 5.0
"""vLLM's ``gpu_memory_utilization``, and activations, graphs and context of one GPU."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """KV cache of one engine.

    Attributes:
        kv_tokens: tokens that it holds.
        kv_bytes_per_token: bytes that each takes.
        expert_layers: layers of experts with a quantized twin, and all of them; ``None`` where twins are no question:
            a dense model, or one that reads and writes in one format.
    """

    kv_tokens: int
    kv_bytes_per_token: int
    expert_layers: tuple[int, int] | None = None

    @property
    def twin_share(self) -> float:
        """Of the layers of experts those that have a twin."""
        return 1.0 if self.expert_layers is None else self.expert_layers[0] / self.expert_layers[1]


def engine_memory(
    model: str,
    gpu: str,
    prefill: str,
    decode: str,
    gpus: int = 1,
    longest: int = 8192,
    expert_twins_gib: float | None = None,
) -> EngineMemory:
    """KV cache of an engine on ``gpus`` such GPUs.

    Args:
        model, gpu: as ``aiconfigurator`` names them, or a model's folder.
        prefill, decode: number formats.
        gpus: see above.
        longest: tokens of the longest request, for which an engine keeps room before it makes twins of experts; no more
            than the model takes.
        expert_twins_gib: the policy's limit of such twins.

    Raises:
        ConfigError: the model's or the GPU's figures are not known, or it does not fit.
    """
    memory, config = _gpu_bytes(gpu), model_config(model)
    _, heads, width = heads_of(config)
    linear = linear_weights(config)
    longest = min(longest, config.get("max_position_embeddings") or longest)
    embedding = config["vocab_size"] * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    exact = 2.0 if decode == "exact" else TWIN_BYTES[decode]
    twin = TWIN_BYTES[prefill] if prefill != decode else 0.0
    weights = 2 * embedding + linear * (exact + twin)
    each_token = 2 * 2 * config["num_hidden_layers"] * heads * width
    room = gpus * (UTILIZATION * memory - OVERHEAD_GIB * GIB) - weights
    layers = None
    shape = shape_of(config)
    if twin and decode == "exact" and config.get("num_experts") and shape is not None:
        all_twins = twin * config["num_hidden_layers"] * shape.numel
        limit = room + all_twins - longest * each_token
        if expert_twins_gib is not None:
            limit = min(limit, expert_twins_gib * GIB)
        experts = estimate(config, NumberFormat(prefill), int(gpus * memory), UTILIZATION, longest, int(limit))
        if experts is not None:
            room += all_twins - experts.taken
            layers = (len(experts.offers) - len(experts.exact), len(experts.offers))
    if room < 1024 * each_token:
        raise ConfigError(
            f"{model!r} takes {weights / GIB:.0f} GiB of weights and leaves no room for KV cache on {gpus} {gpu}; "
            "give an engine more --gpus"
        )
    return EngineMemory(int(room / each_token), each_token, layers)


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


def _gpu_bytes(gpu: str) -> float:
    import yaml

    path = tables_folder() / "systems" / f"{gpu}.yaml"
    if not path.is_file():
        known = ", ".join(gpus_in(path.parent))
        raise ConfigError(f"aiconfigurator-core has no tables for GPU {gpu!r}; it has {known}")
    values = yaml.safe_load(path.read_text())
    return float(values["gpu"]["mem_capacity"])
