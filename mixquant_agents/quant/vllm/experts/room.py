"""What twins of experts may take of a GPU's memory, known between the model's construction and its weights'.

What is left for them: the engine's share of the GPU's memory, less what the model took, the twins of its Linear layers,
a KV cache for one longest request, and what steps need.
"""

from __future__ import annotations

from typing import Any

import torch

from mixquant_agents.quant.experts.estimate import SPARE

__all__ = ["room_for_experts"]

_SHAPE = ("num_kv_heads", "head_size", "sliding_window", "kv_sharing_target_layer_name")
"""What an attention layer says of the keys and values that it keeps."""


def room_for_experts(vllm_config: Any, needed: int, workspace: int) -> int:
    """Bytes of this GPU that twins of experts may take; the same on all tensor-parallel ranks.

    Args:
        vllm_config: of the engine.
        needed: bytes of the twins of Linear layers.
        workspace: bytes that kernels of experts need beside rows and weights.
    """
    free, total = torch.cuda.mem_get_info()
    cache = vllm_config.cache_config
    fixed = cache.kv_cache_memory_bytes
    if fixed:
        left = free - fixed
    else:
        share = int(cache.gpu_memory_utilization * total)
        left = min(free, share - torch.cuda.memory_reserved()) - _longest_request(vllm_config)
    return _least(max(0, left - needed - workspace - int(SPARE * total)))


def _longest_request(vllm_config: Any) -> int:
    """Bytes of KV cache of one request of the greatest length, or of one step's rows, in the model's dtype.

    Layers are asked one by one: those of Gemma 4 differ in shape, and most of them keep a window. Where a layer does
    not say (MLA, state-space models), all count as the largest.
    """
    model, parallel, scheduler = vllm_config.model_config, vllm_config.parallel_config, vllm_config.scheduler_config
    tokens = max(model.max_model_len, scheduler.max_num_batched_tokens)
    count = model.get_num_layers(parallel)
    layers = [layer for layer in vllm_config.compilation_config.static_forward_context.values() if _says_shape(layer)]
    if len(layers) == count:
        step = tokens if scheduler.disable_hybrid_kv_cache_manager else scheduler.max_num_batched_tokens
        values = sum(_kv_values(layer, tokens, step) for layer in layers)
    else:
        values = 2 * tokens * model.get_num_kv_heads(parallel) * model.get_head_size() * count
    return int(1.1 * values * model.dtype.itemsize)


def _says_shape(layer: Any) -> bool:
    return all(hasattr(layer, name) for name in _SHAPE)


def _kv_values(layer: Any, tokens: int, step: int) -> int:
    """Keys and values that an attention layer keeps of a request: all, or its window and the rows of one step."""
    if layer.kv_sharing_target_layer_name is not None:
        return 0  # another layer's are read
    kept = tokens if layer.sliding_window is None else min(tokens, layer.sliding_window + step)
    return int(2 * kept * layer.num_kv_heads * layer.head_size)


def _least(room: int) -> int:
    """Of all tensor-parallel ranks: they route alike."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return room
    rooms: list[int] = [0] * group.world_size
    torch.distributed.all_gather_object(rooms, room, group=group.cpu_group)
    return min(rooms)
