"""Which blocks are measured, and what thresholds say of steps with several exact rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import autotune
from mixquant_agents.quant.autotune import choose_drafts, samples
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.step import DRAFT, DRAFT_FEW_ROWS, EXACT, StepPlan, forced_step
from mixquant_agents.quant.thresholds import Thresholds
from mixquant_agents.quant.twins.rowwise import RowwiseTwin


def layer(block: int, name: str, *shape: int) -> Any:
    return SimpleNamespace(prefix=f"model.layers.{block}.{name}", shape=shape, layer_format="fp8")


def test_model_of_equal_blocks_is_its_first_two() -> None:
    blocks = [[layer(block, "self_attn.qkv_proj", 6, 4), layer(block, "mlp.down_proj", 4, 8)] for block in range(5)]
    (sample,) = samples([each for block in blocks for each in block])
    assert sample.layers == (*blocks[0], *blocks[1])
    assert sample.share == 1


def test_kinds_count_as_often_as_the_model_has_them() -> None:
    dense = [layer(0, "mlp.down_proj", 4, 8)]
    mixed = [layer(block, "mlp.experts", 8, 2, 4) for block in range(1, 4)]
    bare = [layer(block, "self_attn.o_proj", 4, 4) for block in range(4, 10)]
    found = samples([*dense, *mixed, *bare])
    assert [sample.layers for sample in found] == [tuple(dense), tuple(mixed[:2]), tuple(bare[:2])]
    # Two blocks of ten count for each two of the measured ones; a kind's time is that of its measured blocks.
    assert [sample.share for sample in found] == [2 * 1 / 10 / 1, 2 * 3 / 10 / 2, 2 * 6 / 10 / 2]


@pytest.mark.parametrize(("exact", "rows"), [(1, 31), (2, 3071), (8, 3071), (9, 4095), (64, 6143), (200, 6143)])
def test_more_exact_rows_need_larger_steps(exact: int, rows: int) -> None:
    thresholds = Thresholds(15, 31, by_exact={1: 31, 8: 3071, 32: 4095, 64: 6143})
    assert thresholds.mixed_with(exact) == rows
    assert Thresholds(15, 700).mixed_with(exact) == 700


@pytest.mark.parametrize(
    ("writers", "prompt", "mode"), [(1, 500, Mode.MIXED), (8, 500, Mode.EXACT), (8, 4000, Mode.MIXED)]
)
def test_router_asks_how_many_exact_rows_a_step_has(writers: int, prompt: int, mode: Mode) -> None:
    resolved = resolve(PrecisionPolicy.of("mixquant-fp8"), DeviceInfo("cuda", "H200", (9, 0)))
    router = Router(resolved, GraphSettings(64, full_graphs=True))
    measured = Thresholds(15, 31, by_exact={1: 31, 8: 3071, 64: 6143})
    router.prepare(torch.device("cpu"), lambda exact_rows: measured)
    requests = [RequestRows(f"w{i}", 10, 20, 1) for i in range(writers)] + [RequestRows("p", prompt, 0, prompt)]
    rows, step = router.route(requests)
    assert step.mode is mode
    assert rows.num_exact == (writers if mode is Mode.MIXED else writers + prompt)


class DraftLayer:
    """A layer whose products take as long as ``times`` says, by the step in force; an error where it is one."""

    prefix, shape, layer_format = "model.layers.0.mlp.down_proj", (16, 16), "fp8"
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, times: dict[StepPlan, float | Exception], tuning: Exception | None = None) -> None:
        self.times = times
        self.twin = RowwiseTwin("fp8", torch.float8_e4m3fn, "cutlass")

        def tune_few_rows(layers: Any) -> None:
            if tuning is not None:
                raise tuning

        self.twin.tune_few_rows = tune_few_rows  # type: ignore[method-assign]
        self.now = 0.0

    def tuning(self) -> Any:
        return self.twin, None

    def work(self, rows: Any) -> Any:
        rows(16)
        return self.run

    def run(self) -> None:
        step = forced_step()
        assert step is not None
        time = self.times[step]
        if isinstance(time, Exception):
            raise time
        self.now += time


def choose(layer: DraftLayer, monkeypatch: pytest.MonkeyPatch) -> Any:
    def replay(work: Any) -> float:
        layer.now = 0.0
        work()
        return layer.now

    monkeypatch.setattr(autotune, "replay_microseconds", replay)
    layers: Any = [layer]
    return choose_drafts(layers, [1, 8])


@pytest.mark.parametrize(("few_rows", "step"), [(3.0, DRAFT_FEW_ROWS), (5.0, DRAFT)])
def test_drafts_run_the_faster_kernel(monkeypatch: pytest.MonkeyPatch, few_rows: float, step: StepPlan) -> None:
    choices = choose(DraftLayer({EXACT: 8.0, DRAFT: 4.0, DRAFT_FEW_ROWS: few_rows}), monkeypatch)
    assert {rows: choice.step for rows, choice in choices.items()} == {1: step, 8: step}
    assert choices[1].share == min(4.0, few_rows) / 8


@pytest.mark.parametrize(
    ("few_rows", "tuning"),
    [(1.0, FormatRefusedError("wrong on this device")), (RuntimeError("no image of the one with a bias"), None)],
    ids=["wrong", "does not run"],
)
def test_kernel_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, few_rows: float | Exception, tuning: Exception | None
) -> None:
    choices = choose(DraftLayer({EXACT: 8.0, DRAFT: 4.0, DRAFT_FEW_ROWS: few_rows}, tuning), monkeypatch)
    assert {choice.step for choice in choices.values()} == {DRAFT}
    assert list(choices[8].microseconds) == ["exact", "quantized"]
    assert choices[8].share == 0.5
