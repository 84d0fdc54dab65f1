"""The product of a layer of experts, expert by expert: plain, slow, and what everything else is compared with.

For row ``m`` and its chosen experts ``e``::

    out[m] = sum over e of weights[m, e] * down[e] @ activation(up[e] @ x[m])
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from mixquant_agents.quant.experts.layer import ExpertRows, ExpertsLayer, ExpertWeights

__all__ = ["exact_experts", "expert_by_expert"]

Product = Callable[[int, torch.Tensor], torch.Tensor]
"""``(expert on this rank, [R, K])`` to ``[R, N]``."""


def expert_by_expert(rows: ExpertRows, layer: ExpertsLayer, up: Product, down: Product) -> torch.Tensor:
    """``[M, H]`` in the dtype of ``rows.x``: what this rank's experts add to each row.

    A row's sum goes through its experts in their order, in float32, whatever other rows chose.
    """
    expert_map = layer.expert_map()
    out = torch.zeros(rows.x.shape, dtype=torch.float32, device=rows.x.device)
    for chosen in rows.ids.unique().tolist():
        expert = chosen if expert_map is None or chosen < 0 else int(expert_map[chosen])
        if expert < 0:
            continue
        index, slot = (rows.ids == chosen).nonzero(as_tuple=True)
        weights = rows.weights[index, slot].unsqueeze(1)
        x = rows.x[index]
        if layer.weight_on_input:
            x = x * weights.to(x.dtype)
        y = down(expert, layer.activation(up(expert, x))).float()
        out.index_add_(0, index, y if layer.weight_on_input else y * weights)
    return out.to(rows.x.dtype)


def exact_experts(rows: ExpertRows, layer: ExpertsLayer, weights: ExpertWeights) -> torch.Tensor:
    """With the exact weights."""

    def up(expert: int, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weights.up[expert], None if weights.up_bias is None else weights.up_bias[expert])

    def down(expert: int, x: torch.Tensor) -> torch.Tensor:
        return linear(x, weights.down[expert], None if weights.down_bias is None else weights.down_bias[expert])

    return expert_by_expert(rows, layer, up, down)
