"""Small layers of experts with random weights, and their product by the plainest loop."""

from __future__ import annotations

import torch

from mixquant_agents.quant.experts.activations import ACTIVATIONS
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights

SHAPE = ExpertShape(experts=4, hidden=32, inner=16, gated=True, chosen=2)
LAYER = ExpertsLayer("model.layers.0.mlp.experts", SHAPE, ACTIVATIONS["silu"])


def random_weights(shape: ExpertShape = SHAPE, *, biased: bool = False, seed: int = 0) -> ExpertWeights:
    random = torch.Generator().manual_seed(seed)
    e, h, i, u = shape.experts, shape.hidden, shape.inner, shape.up
    up = torch.randn(e, u, h, generator=random) / h**0.5
    down = torch.randn(e, h, i, generator=random) / i**0.5
    if not biased:
        return ExpertWeights(up, down)
    return ExpertWeights(up, down, torch.randn(e, u, generator=random), torch.randn(e, h, generator=random))


def random_rows(m: int, shape: ExpertShape = SHAPE, *, experts: int | None = None, seed: int = 1) -> ExpertRows:
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(m, experts or shape.experts, generator=random)
    weights, ids = scores.topk(shape.chosen, dim=1)
    return ExpertRows(torch.randn(m, shape.hidden, generator=random), weights, ids.to(torch.int32))


def by_loop(rows: ExpertRows, weights: ExpertWeights, layer: ExpertsLayer = LAYER) -> torch.Tensor:
    """float64 ``[M, H]``, row by row and expert by expert."""
    out = torch.zeros(rows.x.shape, dtype=torch.float64)
    up, down = weights.up.double(), weights.down.double()
    for m, (x, shares, ids) in enumerate(zip(rows.x.double(), rows.weights.double(), rows.ids.tolist(), strict=True)):
        for share, e in zip(shares, ids, strict=True):
            inner = up[e] @ (x * share if layer.weight_on_input else x)
            if weights.up_bias is not None:
                inner = inner + weights.up_bias[e].double()
            gate, rest = inner.chunk(2)
            y = down[e] @ (gate / (1 + torch.exp(-gate)) * rest)
            if weights.down_bias is not None:
                y = y + weights.down_bias[e].double()
            out[m] += y if layer.weight_on_input else share * y
    return out
