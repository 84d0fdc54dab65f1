"""The keys of captured graphs, one for each mode, found without comparing; and which compiled piece a step runs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.compilation.piecewise_backend import PiecewiseBackend, RangeEntry
from vllm.config.utils import Range
from vllm.forward_context import BatchDescriptor

from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops.fusion import FUSE_FROM
from mixquant_agents.quant.router import CapturedGraphs
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.vllm import graph_hooks
from mixquant_agents.quant.vllm.graph_hooks import _find_range, _variant


def test_keys_differ_by_mode_and_are_the_same_object_each_time() -> None:
    router: Any = SimpleNamespace(graphs=CapturedGraphs())
    keys = {mode: _variant(router, BatchDescriptor(256), mode) for mode in Mode}
    assert len(set(keys.values())) == 3
    assert all(_variant(router, BatchDescriptor(256), mode) is key for mode, key in keys.items())
    assert _variant(router, BatchDescriptor(512), Mode.EXACT) != keys[Mode.EXACT]


def test_copy_of_a_key_finds_the_same_graph_and_a_change_another() -> None:
    router: Any = SimpleNamespace(graphs=CapturedGraphs())
    key = _variant(router, BatchDescriptor(256), Mode.QUANTIZED)
    graphs = {key: "captured"}
    assert graphs[dataclasses.replace(key)] == "captured"
    assert dataclasses.replace(key, num_tokens=128) not in graphs
    assert BatchDescriptor(256) not in graphs
    assert key.num_tokens == 256


class Backend(SimpleNamespace):
    """What vLLM's ``PiecewiseBackend`` looks its pieces up by; the look-up is vLLM's own."""

    find = PiecewiseBackend._find_range_for_shape


def backend(*starts: int, sizes: tuple[int, ...] = ()) -> Any:
    ends = [start - 1 for start in starts[1:]] + [8192]
    ranges = [Range(*pair) for pair in zip(starts, ends, strict=True)]
    entries = {each: RangeEntry(each) for each in [*ranges, *(Range(size, size) for size in sizes)]}
    return Backend(compile_sizes=list(sizes), compile_ranges=ranges, range_entries=entries, vllm_config=None)


def start_of_piece(pieces: Any, rows: int, step: StepPlan) -> int:
    with steps.forced(step):
        return int(_find_range(Backend.find)(pieces, rows).compile_range.start)


MIXED = StepPlan(Mode.MIXED, exact_rows=torch.zeros(16, dtype=torch.int32))


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    router = SimpleNamespace(uniform=False)
    monkeypatch.setattr(graph_hooks, "_router", lambda config: router)
    return router


@pytest.mark.parametrize("rows", [1, 128, 129, 264, 4352, 8192])
def test_exact_steps_run_the_piece_that_is_not_rewritten(routed: SimpleNamespace, rows: int) -> None:
    pieces = backend(1, FUSE_FROM)
    assert start_of_piece(pieces, rows, EXACT) == 1
    for step in (QUANTIZED, MIXED):
        assert start_of_piece(pieces, rows, step) == (1 if rows < FUSE_FROM else FUSE_FROM)


def test_piece_that_vllm_compiles_by_size_itself_stays(routed: SimpleNamespace) -> None:
    """Such as an all-reduce fused with a norm, whose workspace holds so many rows."""
    assert start_of_piece(backend(1, FUSE_FROM, 2049), 2048, EXACT) == 1
    assert start_of_piece(backend(1, FUSE_FROM, 2049), 2049, EXACT) == 2049
    assert start_of_piece(backend(1, FUSE_FROM, sizes=(264,)), 264, EXACT) == 264
    assert start_of_piece(backend(1, FUSE_FROM, sizes=(FUSE_FROM - 1,)), 264, EXACT) == FUSE_FROM, "of one size alone"


def test_uniform_policy_and_other_engines_keep_vllms_choice(
    routed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed.uniform = True
    assert start_of_piece(backend(1, FUSE_FROM), 264, EXACT) == FUSE_FROM
    monkeypatch.setattr(graph_hooks, "_router", lambda config: None)
    assert start_of_piece(backend(1, FUSE_FROM), 264, EXACT) == FUSE_FROM
