"""Experts in FP8 by our own two products, where they take the layer: many rows, no bias, all experts on this rank."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size

from mixquant_agents.quant.experts.layer import ExpertShape
from mixquant_agents.quant.vllm.experts.tiled import FUSED

__all__ = ["CUTS", "Cut", "GroupedExperts", "grouped_experts"]


class Cut(NamedTuple):
    """Rows of a tile, and the tiles of both products: outputs, inputs, warps, stages (see ``grouped_triton.Tile``)."""

    rows: int
    up: tuple[int, int, int, int]
    down: tuple[int, int, int, int]


CUTS = {
    "64": Cut(64, (64, 128, 4, 4), (128, 128, 4, 4)),
    "128": Cut(128, (128, 128, 8, 4), (128, 128, 4, 3)),
    "128 wide": Cut(128, (128, 128, 8, 4), (256, 128, 8, 4)),
}
"""Cuts to try at start."""


class GroupedExperts(TritonExperts):  # type: ignore[misc] # vllm is untyped here
    """vLLM's class for these experts, but for the products."""

    cut: Cut

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
        a1q_scale: torch.Tensor,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Fill ``output`` ``[M, H]``; ``hidden_states`` are codes ``[M, H]``, ``a1q_scale`` their scales ``[M, 1]``."""
        from mixquant_agents.quant.ops import grouped_triton

        m, chosen = topk_ids.shape
        places, experts, used = moe_align_block_size(topk_ids, self.cut.rows, global_num_experts)
        order = grouped_triton.Order(places, experts, used, self.cut.rows)
        inner = torch.empty(order.places.shape[0], w2.shape[2], dtype=output.dtype, device=output.device)
        up, down = grouped_triton.Tile(*self.cut.up), grouped_triton.Tile(*self.cut.down)
        gelu = FUSED[activation.name]
        grouped_triton.up_rows(hidden_states, a1q_scale, w1, self.w1_scale, order, inner, chosen, up, gelu)
        codes, scales = grouped_triton.quantize_sorted(inner, order)
        outer = workspace2.flatten()[: m * chosen * w2.shape[1]].view(m, chosen, w2.shape[1])
        grouped_triton.down_rows(codes, scales, w2, self.w2_scale, topk_weights, order, outer, down)
        grouped_triton.sum_chosen(outer, output)


def grouped_experts(
    own: Any, shape: ExpertShape, weight_on_input: bool, cuts: dict[str, Cut] | None = None
) -> dict[str, type[GroupedExperts]]:
    """A class for each cut; none where the products do not take the layer."""
    moe = own.moe_config
    takes = (
        own.activation.name in FUSED
        and own.swiglu_limit is None
        and not moe.has_bias
        and not weight_on_input
        and own.expert_map is None
        and shape.gated
    )
    chosen = (CUTS if cuts is None else cuts) if takes else {}
    return {
        f"grouped {name}": type(f"GroupedExperts{name.replace(' ', '')}", (GroupedExperts,), {"cut": cut})
        for name, cut in chosen.items()
        if shape.hidden % cut.up[1] == 0
    }
