"""The routed product: one opaque torch op per Linear, ``torch.ops.mixquant.routed_linear``.

Opaque, so that ``torch.compile`` neither looks inside nor specializes on the branch; it takes tensors, never layer
names. Which rows are quantized it learns from the forward context of the running step, under :data:`CONTEXT_KEY`:

- a :class:`~mixquant_agents.precision.plan.RowPlan`: route by it;
- :data:`EXACT_STEP`: all rows exact (a pass that is not the model's own forward, such as a draft model's);
- nothing: a profile or warm-up run, which takes the quantized path, so that memory profiling sees what it needs.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from mixquant_agents.precision.plan import Mode, RowPlan
from mixquant_agents.quant.twins.base import Twin, get_twin

__all__ = ["CONTEXT_KEY", "EXACT_STEP", "StepMarker", "routed_linear", "step_plan"]

CONTEXT_KEY = "mixquant_plan"


class StepMarker(enum.Enum):
    """What stands in the forward context when there is no plan on purpose."""

    EXACT = "exact"


EXACT_STEP = StepMarker.EXACT


def step_plan() -> RowPlan | StepMarker | None:
    """What the running step's forward context says; ``None`` without one."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    if not is_forward_context_available():
        return None
    found: RowPlan | StepMarker | None = get_forward_context().additional_kwargs.get(CONTEXT_KEY)
    return found


def routed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    twin_tensors: Sequence[torch.Tensor],
    twin: Twin,
    plan: RowPlan | StepMarker | None,
) -> torch.Tensor:
    """``x`` ``[M, K]`` times ``weight`` ``[N, K]``, quantized rows through the twin: ``[M, N]``, without bias.

    Each row is computed once. Rows beyond the plan are padding: they come out as zeros and touch nothing else.
    """
    if plan is None:
        return twin.apply(x, twin_tensors)
    if isinstance(plan, StepMarker) or x.shape[0] < plan.rows:
        # Fewer rows than the step has: not the model's token rows (for example an encoder's), so never routed.
        return linear(x, weight)
    if x.shape[0] == plan.rows:
        if plan.mode is Mode.EXACT:
            return linear(x, weight)
        if plan.mode is Mode.QUANTIZED:
            return twin.apply(x, twin_tensors)
    y = x.new_zeros(x.shape[0], weight.shape[0])
    mask = torch.from_numpy(plan.mask())
    exact, quantized = torch.nonzero(~mask).flatten().to(x.device), torch.nonzero(mask).flatten().to(x.device)
    if exact.numel():
        y[exact] = linear(x[exact], weight)
    if quantized.numel():
        y[quantized] = twin.apply(x[quantized], twin_tensors)
    return y


def _routed_linear_op(
    x: torch.Tensor, weight: torch.Tensor, twin_tensors: list[torch.Tensor], twin: str
) -> torch.Tensor:
    return routed_linear(x, weight, twin_tensors, get_twin(twin), step_plan())


def _routed_linear_fake(
    x: torch.Tensor, weight: torch.Tensor, twin_tensors: list[torch.Tensor], twin: str
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_library = torch.library.Library("mixquant", "FRAGMENT")
_library.define("routed_linear(Tensor x, Tensor weight, Tensor[] twin_tensors, str twin) -> Tensor")
_library.impl("routed_linear", _routed_linear_op, "CPU")
_library.impl("routed_linear", _routed_linear_op, "CUDA")
_library._register_fake("routed_linear", _routed_linear_fake)
