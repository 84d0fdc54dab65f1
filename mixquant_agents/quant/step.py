"""How one engine step runs: all that vLLM's forward context carries of it.

A step has one :class:`~mixquant_agents.precision.plan.Mode` for all its layers:

- ``EXACT``: every row in the engine's own dtype.
- ``QUANTIZED``: every row through the twins.
- ``MIXED``: most rows through the twins, some exact. A twin that runs in captured graphs quantizes every row; the exact
  ones are then computed from unquantized input and written over. They are named by an index buffer on the device:
  inside a captured graph the engine's fixed, padded one, refilled before each replay; outside, a tensor of the step's
  own.

The router makes a step's plan, the runtime hands it to the first forward context that is wide enough for it, and the
operations find it there (:mod:`mixquant_agents.quant.vllm.context`). :func:`forced` stands above the context: while
graphs are captured, while memory is profiled, and while thresholds are measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from mixquant_agents.precision.plan import Mode, RequestRows

__all__ = ["DRAFT", "DRAFT_FEW_ROWS", "EXACT", "QUANTIZED", "StepPlan", "forced", "forced_step"]


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """How the rows of one step run.

    Attributes:
        mode: what they have in common.
        rows: how many rows the step has; what a graph pads beyond them is nobody's. 0: the plan holds for any number.
        requests: who owns the rows, in row order; empty where no request is behind them.
        exact_rows: which rows of a mixed step run exact: int32 ``[S]`` on the device, negative where unused (captured
            twins), or int64 ``[E]`` on the host (others).
        quantized_rows: the other rows, int64 ``[Q]`` on the host; ``None`` for captured twins, which quantize them all.
        fused: the step runs pieces whose norms and activations quantize, however few rows it has.
        few_rows: a draft whose rows are not quantized, only its weights are.
    """

    mode: Mode
    rows: int = 0
    requests: tuple[RequestRows, ...] = ()
    exact_rows: torch.Tensor | None = None
    quantized_rows: torch.Tensor | None = None
    fused: bool = False
    few_rows: bool = False

    @property
    def drafts(self) -> bool:
        """A draft of the twin's, whatever it quantizes."""
        return self.fused or self.few_rows

    def on(self, rows: int) -> StepPlan:
        """The plan for an operation on ``rows`` rows.

        Fewer than the step has are not the model's token rows (an encoder's, for example): they run exact.
        """
        return EXACT if rows < self.rows else self


EXACT = StepPlan(Mode.EXACT)
QUANTIZED = StepPlan(Mode.QUANTIZED)
DRAFT = StepPlan(Mode.QUANTIZED, fused=True)
DRAFT_FEW_ROWS = StepPlan(Mode.QUANTIZED, few_rows=True)

_FORCED: ContextVar[StepPlan | None] = ContextVar("mixquant_forced_step", default=None)


@contextlib.contextmanager
def forced(step: StepPlan) -> Iterator[None]:
    """Every operation inside runs as ``step``, whatever the forward context says."""
    token = _FORCED.set(step)
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced_step() -> StepPlan | None:
    """What :func:`forced` asks for, if anything."""
    return _FORCED.get()
