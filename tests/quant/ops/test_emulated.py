"""The routed product equals running each phase alone, row for row, in any mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from mixquant_agents.precision.plan import Reach, RequestRows, RowPlan, RowRule, plan_rows
from mixquant_agents.quant.ops.emulated import EXACT_STEP, routed_linear
from mixquant_agents.quant.twins.base import get_twin

K, N = 48, 24
RULE = RowRule(Reach.BEFORE_LAST)
TWIN = get_twin("nvfp4-emulated")
WEIGHT = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
TENSORS = TWIN.build(WEIGHT)


class Recording:
    """A twin that notes which rows it was given and marks what it returns."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def build(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return ()

    def apply(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        self.rows += x[:, 0].int().tolist()
        return torch.full((x.shape[0], N), 7.0)


def rows_of(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, K, generator=torch.Generator().manual_seed(seed))


batches = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 25), st.integers(1, 9)), min_size=1, max_size=5)


def plan_of(batch: list[tuple[int, int, int]]) -> RowPlan:
    return plan_rows([RequestRows(f"r{i}", *values) for i, values in enumerate(batch)], RULE)


@pytest.mark.slow
@settings(deadline=None)
@given(batches, st.integers(0, 4))
def test_each_row_goes_where_the_plan_says_and_only_there(batch: list[tuple[int, int, int]], padding: int) -> None:
    plan = plan_of(batch)
    x = torch.zeros(plan.rows + padding, K)
    x[:, 0] = torch.arange(plan.rows + padding)
    twin = Recording()
    y = routed_linear(x, WEIGHT, (), twin, plan)
    mask = plan.mask()
    assert twin.rows == np.flatnonzero(mask).tolist()
    assert (y[: plan.rows][mask] == 7).all()
    torch.testing.assert_close(y[: plan.rows][~mask], linear(x[: plan.rows][~mask], WEIGHT))
    assert not y[plan.rows :].any()


@pytest.mark.slow
@settings(deadline=None)
@given(batches)
def test_a_mixed_batch_equals_each_phase_alone(batch: list[tuple[int, int, int]]) -> None:
    plan = plan_of(batch)
    x = rows_of(plan.rows)
    y = routed_linear(x, WEIGHT, TENSORS, TWIN, plan)
    mask = plan.mask()
    torch.testing.assert_close(y[~mask], linear(x, WEIGHT)[~mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[mask], TWIN.apply(x, TENSORS)[mask], rtol=1e-5, atol=1e-5)


def test_prefill_only_and_decode_only_steps() -> None:
    prefill, decode = plan_of([(20, 0, 9)]), plan_of([(5, 5, 1), (3, 9, 1)])
    x = rows_of(9)
    assert torch.equal(routed_linear(x, WEIGHT, TENSORS, TWIN, prefill), TWIN.apply(x, TENSORS))
    assert torch.equal(routed_linear(x[:2], WEIGHT, TENSORS, TWIN, decode), linear(x[:2], WEIGHT))


def test_nan_in_padding_or_in_another_row_spreads_nowhere() -> None:
    plan = plan_of([(6, 0, 6), (4, 4, 1)])
    x = rows_of(plan.rows + 3)
    clean = routed_linear(x[: plan.rows], WEIGHT, TENSORS, TWIN, plan)
    x[plan.rows :] = float("nan")
    x[2] = float("nan")
    y = routed_linear(x, WEIGHT, TENSORS, TWIN, plan)
    others = np.setdiff1d(np.arange(plan.rows), [2])
    assert torch.equal(y[others], clean[others])
    assert not y[plan.rows :].any()


def test_contexts_without_a_plan() -> None:
    x = rows_of(5)
    assert torch.equal(routed_linear(x, WEIGHT, TENSORS, TWIN, None), TWIN.apply(x, TENSORS))
    assert torch.equal(routed_linear(x, WEIGHT, TENSORS, TWIN, EXACT_STEP), linear(x, WEIGHT))


def test_rows_that_are_not_the_steps_tokens_run_exact() -> None:
    plan = plan_of([(20, 0, 9)])
    x = rows_of(4)
    assert torch.equal(routed_linear(x, WEIGHT, TENSORS, TWIN, plan), linear(x, WEIGHT))


@pytest.mark.parametrize("rows", [1, 5])
def test_the_op_is_opaque_and_has_a_shape_function(rows: int) -> None:
    x = rows_of(rows)
    torch.library.opcheck(
        torch.ops.mixquant.routed_linear.default,
        (x, WEIGHT, list(TENSORS), "nvfp4-emulated"),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert torch.equal(
        torch.ops.mixquant.routed_linear(x, WEIGHT, list(TENSORS), "nvfp4-emulated"), TWIN.apply(x, TENSORS)
    )
