"""The routed product of twins that run outside of captured graphs: each row is computed once."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import StepPlan
from mixquant_agents.quant.twins.base import Twin

__all__ = ["eager_linear"]

State = TypeVar("State")


def eager_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, twin: Twin[State], state: State, step: StepPlan
) -> Tensor:
    """``x`` ``[M, K]`` times ``weight`` ``[N, K]``, quantized rows through ``twin``: ``[M, N]``.

    Rows beyond those of a mixed step are padding: they come out as zeros and touch nothing else.
    """
    step = step.on(x.shape[0])
    if step.mode is Mode.EXACT:
        return twin.exact(x, weight, state, bias)
    if step.mode is Mode.QUANTIZED:
        return twin.product(PlainRows(x), state, bias)
    if step.exact_rows is None or step.quantized_rows is None:
        raise RuntimeError("a mixed step of an eager engine must name its exact and its quantized rows")
    exact, quantized = step.exact_rows.to(x.device), step.quantized_rows.to(x.device)
    y = x.new_zeros(x.shape[0], weight.shape[0])
    y[exact] = twin.exact(x[exact], weight, state, bias)
    y[quantized] = twin.product(PlainRows(x[quantized]), state, bias)
    return y
