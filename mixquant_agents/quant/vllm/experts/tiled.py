"""vLLM's grouped Triton product with tiles of our choice, and the activation fused with the quantization after it.

vLLM picks tiles from a file for each shape and device, and has none for experts with one FP8 scale a row: its fallback
was up to 1.6 times slower than the better of these on an H200, and CUTLASS up to 1.3 times (``python -m
mixquant_agents.bench.gpu.experts``, docs/results/experts-h200.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.fused_moe import invoke_fused_moe_triton_kernel
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.triton_utils import tl

from mixquant_agents.quant.ops.sources import kernels_for

__all__ = ["FUSED", "TILES", "TiledExperts", "tiled_experts"]

TILES = {
    "64x128x128": (64, 128, 128, 16, 4, 4),
    "128x256x128": (128, 256, 128, 16, 8, 4),
}
"""Rows, outputs and inputs of a tile, tiles of a group, warps, stages."""

_KEYS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
FUSED = {"SILU": False, "GELU_TANH": True}
"""Activations that our kernels know, by vLLM's names, and whether it is GELU."""


class TiledExperts(TritonExperts):  # type: ignore[misc] # vllm is untyped here
    """vLLM's class for these experts, but for the product itself."""

    tile: dict[str, int]

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Fill ``output`` ``[M, H]``; ``hidden_states`` are codes ``[M, H]``, ``a1q_scale`` their scales ``[M, 1]``."""
        m, chosen = topk_ids.shape
        rows = m * chosen
        order = moe_align_block_size(topk_ids, self.tile["BLOCK_SIZE_M"], global_num_experts, expert_map)
        inner = workspace2.flatten()[: rows * w1.shape[1]].view(m, chosen, w1.shape[1])
        self._multiply(hidden_states, w1, inner, a1q_scale, self.w1_scale, None, order, chosen, self.w1_bias)
        codes, scales = kernels_for(inner).silu_quantize_rows(
            inner.view(rows, -1), hidden_states.dtype, gelu=FUSED[activation.name]
        )
        outer = workspace2.flatten()[: rows * w2.shape[1]].view(m, chosen, w2.shape[1])
        weights = None if apply_router_weight_on_input else topk_weights
        self._multiply(codes, w2, outer, scales, self.w2_scale, weights, order, 1, self.w2_bias)
        self.moe_sum(outer, output)

    def _multiply(
        self,
        codes: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        scales: torch.Tensor | None,
        weight_scales: torch.Tensor,
        topk_weights: torch.Tensor | None,
        order: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        chosen: int,
        bias: torch.Tensor | None,
    ) -> None:
        is_int = codes.dtype is torch.int8
        invoke_fused_moe_triton_kernel(
            codes,
            weight,
            out,
            scales,
            weight_scales,
            topk_weights,
            *order,
            topk_weights is not None,
            chosen,
            self.tile,
            compute_type=getattr(tl, str(out.dtype).rpartition(".")[2]),
            use_fp8_w8a8=not is_int,
            use_int8_w8a8=is_int,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=True,
            block_shape=None,
            B_bias=bias,
        )


def tiled_experts(own: Any, tiles: Mapping[str, tuple[int, ...]] = TILES) -> dict[str, type[TiledExperts]]:
    """A class for each of ``tiles``; none where the layer's activation is not among ours."""
    if own.activation.name not in FUSED or own.swiglu_limit is not None:
        return {}
    return {
        f"tiles {name}": type(f"TiledExperts{name}", (TiledExperts,), {"tile": dict(zip(_KEYS, sizes, strict=True))})
        for name, sizes in tiles.items()
    }
