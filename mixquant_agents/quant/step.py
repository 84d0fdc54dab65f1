"""How one engine step runs on the GPU, and how the operations learn of it.

A step has one :class:`Mode` for all its layers:

- ``EXACT``: every row in 16 bits.
- ``QUANTIZED``: every row quantized.
- ``MIXED``: every row quantized, then the exact rows computed from unquantized input and written over. The exact rows
  are named by an index buffer on the device. Inside a captured graph it is the engine's fixed, padded one, refilled
  before each replay; outside, a tensor of the step's own.

An operation asks :func:`current`. While graphs are captured and while the start-up measurement runs, :func:`forced`
answers; else the plan in vLLM's forward context does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mixquant_agents.precision.plan import Mode, RowPlan
from mixquant_agents.quant.ops.emulated import StepMarker, step_plan

__all__ = ["EXACT", "QUANTIZED", "Mode", "Step", "announce", "current", "forced", "warmup_threshold"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step's mode; ``index`` int32 ``[S]`` on the device names the exact rows of a mixed one (negative: unused).

    ``rows`` is how many rows the step has; an operation on fewer is not on the model's token rows and runs exact.
    """

    mode: Mode
    index: torch.Tensor | None = None
    rows: int = 0


EXACT = Step(Mode.EXACT)
QUANTIZED = Step(Mode.QUANTIZED)


class _State:
    """Of this process. Engines of one process take turns: a step is planned and run before the next is planned."""

    forced: Step | None = None
    plan: RowPlan | None = None
    step: Step = EXACT
    warmup_threshold: int = 0


def warmup_threshold(rows: int) -> None:
    """Runs without a plan (profiling, warm-up) quantize above so many rows, as serving would."""
    _State.warmup_threshold = rows


def announce(plan: RowPlan, step: Step) -> None:
    """The step planned as ``plan`` is to run as ``step``."""
    _State.plan, _State.step = plan, step


def step_of(plan: RowPlan) -> Step | None:
    """The step announced for ``plan``, if it was the latest."""
    return _State.step if plan is _State.plan else None


@contextlib.contextmanager
def forced(step: Step) -> Iterator[None]:
    """Every operation inside runs as ``step``."""
    before, _State.forced = _State.forced, step
    try:
        yield
    finally:
        _State.forced = before


def is_forced() -> Step | None:
    """What :func:`forced` asks for, if anything."""
    return _State.forced


def current(rows: int) -> Step:
    """How an operation on ``rows`` rows is to run."""
    if _State.forced is not None:
        return _State.forced
    plan = step_plan()
    if plan is None:
        return QUANTIZED if rows > _State.warmup_threshold else EXACT
    if isinstance(plan, StepMarker) or rows < plan.rows:
        return EXACT
    step = step_of(plan)
    if step is None:
        raise RuntimeError("a step runs with a plan that was never announced; the runner's hooks are out of order")
    return step
