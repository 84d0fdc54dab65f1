"""Which layers of experts of a model would have twins, by its ``config.json`` before anything is started.

The engine plans the same way with what it really measures (``quant/vllm/experts/room.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.quant.experts.layer import ExpertShape
from mixquant_agents.quant.experts.memory import ExpertsMemory, Offer

__all__ = ["SPARE", "estimate", "shape_of"]

SPARE = 0.04
"""Of the GPU's memory: captured graphs, activations, the CUDA context."""

_BYTES = {NumberFormat.FP8: 1.0, NumberFormat.INT8: 1.0, NumberFormat.NVFP4: 0.5625}
"""Of a twin's weight; NVFP4's with a scale for every 16."""


def shape_of(config: Mapping[str, Any]) -> ExpertShape | None:
    """A layer's experts by a model's configuration (its text part); ``None`` where it has none."""
    config = config.get("text_config") or config
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    chosen = config.get("num_experts_per_tok") or config.get("top_k_experts")
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size")
    if not (experts and chosen and inner):
        return None
    return ExpertShape(int(experts), int(config["hidden_size"]), int(inner), True, int(chosen))


def estimate(
    config: Mapping[str, Any],
    number_format: NumberFormat,
    memory: int,
    share: float = 0.9,
    longest: int = 8192,
    limit: int | None = None,
) -> ExpertsMemory | None:
    """The plan for a GPU of ``memory`` bytes of which an engine takes ``share``; ``None`` for a model without experts.

    Weights are 16 bits; a KV cache of one request of ``longest`` tokens is kept free. ``limit``: most bytes of twins of
    experts, the policy's ``expert_twins_gib``.
    """
    shape = shape_of(config)
    if shape is None or number_format not in _BYTES:
        return None
    text = config.get("text_config") or config
    layers, hidden = int(text["num_hidden_layers"]), shape.hidden
    first = int(text.get("first_k_dense_replace") or 0)
    heads = int(text["num_attention_heads"])
    width, cached = int(text.get("head_dim") or hidden // heads), int(text.get("num_key_value_heads") or heads)
    attention = layers * 2 * hidden * width * (heads + cached)
    dense_mlp = 3 * hidden * int(text.get("intermediate_size") or 0)
    dense = attention + dense_mlp * (layers if "enable_moe_block" in text else first)
    embedding = int(text["vocab_size"]) * hidden * (1 if text.get("tie_word_embeddings") else 2)
    with_experts = range(first, layers)
    exact = 2 * (dense + embedding + len(with_experts) * shape.numel)
    twin = int(_BYTES[number_format] * shape.numel) + 4 * shape.experts * (shape.up + hidden)
    plan = ExpertsMemory([Offer(f"model.layers.{layer}.mlp.experts", twin, shape.work) for layer in with_experts])
    kv = 4 * longest * cached * width * layers
    room = share * memory - exact - _BYTES[number_format] * dense - kv - SPARE * memory
    plan.settle(max(0, int(room if limit is None else min(room, limit))))
    return plan
