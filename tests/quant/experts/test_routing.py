"""Rows of experts by the step's plan: what one row is never depends on how another runs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from mixtures import LAYER, random_rows, random_weights

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.experts.layer import ExpertRows
from mixquant_agents.quant.experts.reference import exact_experts
from mixquant_agents.quant.experts.routing import routed_experts
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan

WEIGHTS, TWIN = random_weights(), random_weights(seed=9)
"""The twin's are others altogether: a row that ran by the wrong ones cannot be taken for a right one."""


def one_by_one(rows: ExpertRows, weights: object) -> torch.Tensor:
    """Each row by itself, so that no product sees how many there are."""
    each = [exact_experts(rows.take(torch.tensor([m])), LAYER, weights) for m in range(rows.x.shape[0])]  # type: ignore[arg-type] # either of the two
    return torch.cat(each) if each else rows.x.new_zeros(rows.x.shape)


def exact(rows: ExpertRows) -> torch.Tensor:
    return one_by_one(rows, WEIGHTS)


def twin(rows: ExpertRows) -> torch.Tensor:
    return one_by_one(rows, TWIN)


@st.composite
def mixed(draw: st.DrawFn) -> tuple[ExpertRows, list[int], int]:
    """Rows, which of them are exact, and how many of a captured graph's are padding."""
    m = draw(st.integers(1, 12))
    exact_rows = draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=m, unique=True))
    return random_rows(m, seed=draw(st.integers(0, 5))), sorted(exact_rows), draw(st.integers(0, 4))


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
