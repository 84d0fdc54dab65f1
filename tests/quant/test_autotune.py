"""What is chosen by measuring, on layers whose products take times that are known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.quant import autotune
from mixquant_agents.quant.autotune import choose_drafts
from mixquant_agents.quant.step import DRAFT, DRAFT_FEW_ROWS, forced_step
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.vllm.draft.speculator import describe


class Layer(SimpleNamespace):
    """One of a block's, which notes what it was asked for."""

    device, dtype = torch.device("cpu"), torch.float32

    def tuning(self) -> tuple[Any, Any]:
        return self.twin, self.prefix

    def work(self, rows: Callable[[int], torch.Tensor]) -> Callable[[], object]:
        return lambda: self.calls.append(forced_step())


class FewRows(Twin[Any]):
    name = "few"

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        return 0

    def build(self, weight: torch.Tensor, calibration: Any = None) -> Any:
        return weight

    def tensors(self, state: Any) -> dict[str, torch.Tensor]:
        return {}

    def product(self, source: Any, state: Any, bias: Any = None, exact: Any = None) -> torch.Tensor:
        raise NotImplementedError

    def tune_few_rows(self, layers: Any) -> None:
        if self.fails:
            raise RuntimeError("no such instruction")


def layers(fails: bool = False) -> tuple[list[Any], list[Any]]:
    calls: list[Any] = []
    twin = FewRows(fails)
    made = [
        Layer(prefix=f"model.layers.{block}.mlp.up_proj", shape=(8, 8), layer_format=None, twin=twin, calls=calls)
        for block in range(4)
    ]
    return made, calls


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    times = {"exact": 100.0, DRAFT: 70.0, DRAFT_FEW_ROWS: 60.0}

    def replay(work: Callable[[], object]) -> float:
        work()
        step = forced_step()
        return times.get(step, times["exact"])

    monkeypatch.setattr(autotune, "replay_microseconds", replay)
    return times


def test_faster_of_both_kinds_of_drafts_is_chosen(timed: dict[Any, float]) -> None:
    made, calls = layers()
    found = choose_drafts(made, [1, 8])
    assert {rows: choice.step for rows, choice in found.items()} == {1: DRAFT_FEW_ROWS, 8: DRAFT_FEW_ROWS}
    assert found[1].share == pytest.approx(0.6)
    assert calls, "the layers' own products were run"
    timed[DRAFT] = 50.0
    again = choose_drafts(made, [1])[1]
    assert (again.step, again.share) == (DRAFT, pytest.approx(0.5))
    assert describe({1: again}) == "drafts by rows, and their products' time over the exact ones: 1: quantized 0.50"


def test_kernel_that_does_not_run_here_is_done_without(
    timed: dict[Any, float], caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = layers(fails=True)
    with caplog.at_level("WARNING", logger="vllm.mixquant"):
        found = choose_drafts(made, [4])[4]
    assert (found.step, found.share) == (DRAFT, pytest.approx(0.7))
