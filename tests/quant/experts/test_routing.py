"""Rows of experts by the step's plan: what one row is never depends on how another runs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import random_rows

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.experts.layer import ExpertRows
from mixquant_agents.quant.experts.routing import routed_experts
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan


def exact(rows: ExpertRows) -> torch.Tensor:
    """What each row gives by itself, to the bit."""
    return rows.x * rows.weights[:, :1] + rows.ids.sum(dim=1, keepdim=True)


def twin(rows: ExpertRows) -> torch.Tensor:
    """Something else altogether: a row that ran by the wrong one cannot be taken for a right one."""
    return -exact(rows) - 100


@st.composite
def mixed(draw: st.DrawFn) -> tuple[ExpertRows, list[int], int]:
    """Rows, which of them are exact, and how many of a captured graph's are padding."""
    m = draw(st.integers(1, 8))
    exact_rows = draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=m, unique=True))
    return random_rows(m, seed=draw(st.integers(0, 5))), sorted(exact_rows), draw(st.integers(0, 4))


@settings(max_examples=15)
@given(mixed())
def test_mixed_step_gives_each_row_what_a_step_of_its_own_would(case: tuple[ExpertRows, list[int], int]) -> None:
    rows, exact_rows, unused = case
    m = rows.x.shape[0]
    slot = torch.tensor([*exact_rows, *[-1] * unused], dtype=torch.int32)
    others = [row for row in range(m) if row not in exact_rows]
    plans = [
        StepPlan(Mode.MIXED, m, exact_rows=slot),
        StepPlan(
            Mode.MIXED, m, exact_rows=torch.tensor(exact_rows), quantized_rows=torch.tensor(others, dtype=torch.int64)
        ),
    ]
    for plan in plans:
        found = routed_experts(rows, plan, exact, twin)
        assert torch.equal(found[exact_rows], exact(rows)[exact_rows])
        assert torch.equal(found[others], twin(rows)[others])


@settings(max_examples=15)
@given(mixed())
def test_exact_call_of_a_captured_step_sees_exact_rows_alone(case: tuple[ExpertRows, list[int], int]) -> None:
    """Unused slots read no expert that no exact row chose."""
    rows, exact_rows, unused = case
    seen: list[ExpertRows] = []

    def watched(some: ExpertRows) -> torch.Tensor:
        seen.append(some)
        return exact(some)

    slot = torch.tensor([*exact_rows, *[-1] * unused], dtype=torch.int32)
    routed_experts(rows, StepPlan(Mode.MIXED, rows.x.shape[0], exact_rows=slot), watched, twin)
    (given_rows,) = seen
    assert given_rows.x.shape[0] == len(exact_rows) + unused
    assert set(given_rows.ids.flatten().tolist()) == set(rows.ids[exact_rows].flatten().tolist())


def test_pure_steps_make_one_call() -> None:
    rows = random_rows(5)
    assert torch.equal(routed_experts(rows, EXACT, exact, twin), exact(rows))
    assert torch.equal(routed_experts(rows, QUANTIZED, exact, twin), twin(rows))


def test_padding_of_an_eager_step_is_zero() -> None:
    rows = random_rows(6)
    plan = StepPlan(Mode.MIXED, 4, exact_rows=torch.tensor([1]), quantized_rows=torch.tensor([0, 2, 3]))
    found = routed_experts(rows, plan, exact, twin)
    assert not found[4:].any()


def test_slot_without_any_row_changes_nothing() -> None:
    """While graphs are captured the buffer is empty."""
    rows = random_rows(5)
    plan = StepPlan(Mode.MIXED, 0, exact_rows=torch.full((4,), -1, dtype=torch.int32))
    assert torch.equal(routed_experts(rows, plan, exact, twin), twin(rows))
