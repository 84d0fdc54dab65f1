"""The routed product of eager twins equals running each phase alone, row for row, in any mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import LayerFormat, resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.ops.sources import ExactRows, PlainRows, RowSource
from mixquant_agents.quant.router import Router
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.twins.base import Twin

K, N = 48, 24
TWIN = emulated_twin(LayerFormat(NumberFormat.NVFP4, emulated=True))
WEIGHT = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(N, generator=torch.Generator().manual_seed(5))
STATE = TWIN.build(WEIGHT)


class Recording(Twin[None]):
    """A twin that notes which rows it was given and marks what it returns."""

    name = "recording"

    def __init__(self) -> None:
        self.rows: list[int] = []

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        return 0

    def build(self, weight: torch.Tensor) -> None:
        return None

    def tensors(self, state: None) -> dict[str, torch.Tensor]:
        return {}

    def product(
        self, source: RowSource, state: None, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        self.rows += source.rows()[:, 0].int().tolist()
        return torch.full((source.x.shape[0], N), 7.0)


def rows_of(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, K, generator=torch.Generator().manual_seed(seed))


def through_twin(x: torch.Tensor) -> torch.Tensor:
    return TWIN.product(PlainRows(x), STATE, BIAS)


def routed(x: torch.Tensor, step: StepPlan) -> torch.Tensor:
    return eager_linear(x, WEIGHT, BIAS, TWIN, STATE, step)


batches = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 25), st.integers(1, 9)), min_size=1, max_size=5)


def plan_of(batch: list[tuple[int, int, int]]) -> tuple[np.ndarray, StepPlan]:
    """Which rows are quantized, and the step."""
    router = Router(resolve(PrecisionPolicy.of("mixquant-nvfp4-plain"), DeviceInfo("cpu", "cpu")))
    rows, step = router.route([RequestRows(f"r{i}", *values) for i, values in enumerate(batch)])
    return rows.mask(), step


@pytest.mark.slow
@given(batches, st.integers(0, 4))
def test_rows_go_where_the_plan_says_and_only_there(batch: list[tuple[int, int, int]], padding: int) -> None:
    mask, step = plan_of(batch)
    x = torch.zeros(step.rows + padding, K)
    x[:, 0] = torch.arange(step.rows + padding)
    twin = Recording()
    y = eager_linear(x, WEIGHT, BIAS, twin, None, step)
    real, padded = y[: step.rows], y[step.rows :]
    assert [row for row in twin.rows if row < step.rows] == np.flatnonzero(mask).tolist()
    assert (real[mask] == 7).all()
    torch.testing.assert_close(real[~mask], linear(x[: step.rows][~mask], WEIGHT, BIAS))
    if step.mode is Mode.MIXED:
        assert not padded.any()


@pytest.mark.slow
@given(batches)
def test_mixed_batch_equals_each_phase_alone(batch: list[tuple[int, int, int]]) -> None:
    mask, step = plan_of(batch)
    x = rows_of(step.rows)
    y = routed(x, step)
    torch.testing.assert_close(y[~mask], linear(x, WEIGHT, BIAS)[~mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[mask], through_twin(x)[mask], rtol=1e-5, atol=1e-5)


def test_prefill_only_and_decode_only_steps() -> None:
    x = rows_of(9)
    assert torch.equal(routed(x, plan_of([(20, 0, 9)])[1]), through_twin(x))
    assert torch.equal(routed(x[:2], plan_of([(5, 5, 1), (3, 9, 1)])[1]), linear(x[:2], WEIGHT, BIAS))


def test_nan_in_padding_or_in_another_row_spreads_nowhere() -> None:
    _, step = plan_of([(6, 0, 6), (4, 4, 1)])
    x = rows_of(step.rows + 3)
    clean = routed(x[: step.rows], step)
    x[step.rows :] = float("nan")
    x[2] = float("nan")
    y = routed(x, step)
    others = np.setdiff1d(np.arange(step.rows), [2])
    assert torch.equal(y[others], clean[others])
    assert not y[step.rows :].any()


def test_steps_of_any_number_of_rows() -> None:
    x = rows_of(5)
    assert torch.equal(routed(x, QUANTIZED), through_twin(x))
    assert torch.equal(routed(x, EXACT), linear(x, WEIGHT, BIAS))


def test_rows_that_are_not_the_steps_tokens_run_exact() -> None:
    x = rows_of(4)
    assert torch.equal(routed(x, plan_of([(20, 0, 9)])[1]), linear(x, WEIGHT, BIAS))
