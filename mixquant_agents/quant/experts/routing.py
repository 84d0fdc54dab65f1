"""Which rows of a layer of experts run through its twin: by the step's plan, as in every other routed layer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.experts.layer import ExpertRows
from mixquant_agents.quant.ops.sources import kernels_for
from mixquant_agents.quant.step import StepPlan

__all__ = ["routed_experts"]

Experts = Callable[[ExpertRows], torch.Tensor]


def routed_experts(rows: ExpertRows, step: StepPlan, exact: Experts, twin: Experts) -> torch.Tensor:
    """``[M, H]``: each row through ``exact`` or ``twin``.

    In a mixed step of captured twins, ``twin`` gets all rows, and the results of the exact ones are written over; the
    exact call gets exact rows alone. Unused slots are filled with the first exact row, whose experts are read anyway.
    Elsewhere each row is computed once; rows beyond those of the step are padding and come out as zeros.
    """
    step = step.on(rows.x.shape[0])
    if step.mode is Mode.EXACT:
        return exact(rows)
    if step.mode is Mode.QUANTIZED or step.exact_rows is None:
        return twin(rows)
    if step.quantized_rows is None:
        index = step.exact_rows
        used = torch.maximum(index, index[:1].clamp_min(0))  # indices rise, so this fills unused slots alone
        computed = exact(rows.take(used))
        out = twin(rows)
        kernels_for(out).scatter_rows(computed, index, out)
        return out
    exact_rows, quantized_rows = (each.to(rows.x.device) for each in (step.exact_rows, step.quantized_rows))
    out = rows.x.new_zeros(rows.x.shape)
    out[exact_rows] = exact(rows.take(exact_rows))
    out[quantized_rows] = twin(rows.take(quantized_rows))
    return out
