"""Products of few unquantized rows, held against float64 before drafts run them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.twins import rowwise
from mixquant_agents.quant.twins.few_rows import check_few_rows
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

Kernel = Callable[..., torch.Tensor]
KERNELS = "mixquant_agents.quant.ops.few_rows_triton"


def right(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, tiling: object
) -> torch.Tensor:
    return (x.float() @ (codes.float() * scales).T).to(x.dtype)


def last_row_lost(*each: Any) -> torch.Tensor:
    out = right(*each)
    out[-1] = 0
    return out


WRONG: list[Kernel] = [
    last_row_lost,
    lambda *each: right(*each) * 1.05,
    lambda *each: right(*each).masked_fill(right(*each) > 1, torch.nan),
    lambda *each: right(*each).roll(1, dims=1),
]


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> RowwiseTwin:
    monkeypatch.setattr(rowwise, "replay_microseconds", lambda work: 1.0)
    return RowwiseTwin("fp8", torch.float8_e4m3fn, "cutlass")


def tune(twin: RowwiseTwin, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, KERNELS, SimpleNamespace(TILINGS=("one", "other"), few_rows_product=kernel))
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    twin.tune_few_rows([(weight, twin.build(weight))])


def test_right_kernel_is_taken(twin: RowwiseTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(twin, right, monkeypatch)
    assert twin.status()["few_rows"] == {"96x128x16": 0, "96x128x32": 0}


@pytest.mark.parametrize("kernel", WRONG)
def test_wrong_kernel_is_refused(twin: RowwiseTwin, monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    with pytest.raises(FormatRefusedError, match="rows with 96x128 codes is wrong on this device"):
        tune(twin, kernel, monkeypatch)
    assert "few_rows" not in twin.status()


def test_last_outputs_are_compared() -> None:
    codes, scales = torch.ones(512, 64, dtype=torch.int8), torch.ones(512, 1)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = right(x, codes, scales, None, None)
        out[:, -1] = 0
        return out

    with pytest.raises(FormatRefusedError, match="wrong on this device"):
        check_few_rows(run, codes, scales, (1,), torch.bfloat16)
