"""Which blocks are measured, and what thresholds say of steps with several exact rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.autotune import samples
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.thresholds import Thresholds


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
