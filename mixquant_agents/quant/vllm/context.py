"""Where a step's plan lies while the model runs: in vLLM's forward context, under :data:`CONTEXT_KEY`."""

from __future__ import annotations

from typing import Any

from mixquant_agents.quant.step import EXACT, StepPlan, forced_step

__all__ = ["CONTEXT_KEY", "current_step", "step_in"]

CONTEXT_KEY = "mixquant_step"


def step_in(context: Any) -> StepPlan:
    """The plan in a forward context of vLLM's; all exact where there is none (a pass that is not the model's own)."""
    step: StepPlan = context.additional_kwargs.get(CONTEXT_KEY, EXACT)
    return step


def current_step(rows: int) -> StepPlan:
    """How an operation on ``rows`` rows is to run now; exact outside of any forward context."""
    step = forced_step()
    if step is None:
        from vllm.forward_context import get_forward_context, is_forward_context_available

        step = step_in(get_forward_context()) if is_forward_context_available() else EXACT
    return step.on(rows)
