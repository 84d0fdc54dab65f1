"""Which mode a step runs in on a GPU: the decisions, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, OutOfMemoryError
from mixquant_agents.precision.plan import Mode, RequestRows, RowPlan, plan_rows
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops.gemm import Chooser
from mixquant_agents.quant.router import GpuRouting
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.thresholds import Thresholds, crossing
from mixquant_agents.quant.twins.memory import TwinMemory
from mixquant_agents.quant.twins.rowwise import register

HOPPER = DeviceInfo("cuda", "NVIDIA H200", (9, 0))


def routing(policy: PrecisionPolicy | str = "mixquant-fp8", pure: int = 100, mixed: int = 700) -> GpuRouting:
    resolved = resolve(PrecisionPolicy.of(policy), HOPPER)
    runtime: Any = SimpleNamespace(resolved=resolved, measured_threshold=0, device=HOPPER, twin="fp8-native")
    found = GpuRouting(runtime, max_num_seqs=256, graphs=True)
    found.prepare([], torch.device("cpu"))
    if runtime.resolved.row_threshold is None and not found.uniform:
        found.thresholds = Thresholds(pure, mixed)
        runtime.measured_threshold = pure
    return found


def plan(found: GpuRouting, *rows: tuple[int, int, int]) -> RowPlan:
    """``rows``: prompt length, computed, scheduled."""
    requests = [RequestRows(f"r{k}", *row) for k, row in enumerate(rows)]
    return plan_rows(requests, found.runtime.resolved.rule(found.thresholds.pure, found.thresholds.mixed))


def mode(found: GpuRouting, *rows: tuple[int, int, int]) -> Mode:
    routed = found.route(plan(found, *rows))
    step = steps.step_of(routed)
    assert step is not None
    assert (step.mode is Mode.EXACT) == (routed.num_quantized == 0)
    assert routed.mode is step.mode
    return step.mode


DECODE = (10, 20, 1)


def test_modes_by_rows_and_company() -> None:
    found = routing()
    assert mode(found, (2000, 0, 100)) is Mode.EXACT  # up to the threshold
    assert mode(found, (2000, 0, 101)) is Mode.QUANTIZED
    assert mode(found, (600, 0, 600), DECODE) is Mode.EXACT  # exact rows among them: not worth it yet
    assert mode(found, (800, 0, 800), DECODE) is Mode.MIXED
    assert mode(found, *[DECODE] * 256) is Mode.EXACT


def test_one_row_each_is_left_to_the_full_graph() -> None:
    found = routing(PrecisionPolicy.of("mixquant-fp8").model_copy(update={"row_threshold": 1}))
    assert mode(found, (50, 3, 1), (50, 7, 1)) is Mode.EXACT
    assert mode(found, (50, 3, 2), (50, 7, 1)) is Mode.QUANTIZED


def test_unequally_few_rows_each_are_left_to_the_full_graph_of_speculative_decoding() -> None:
    found = routing(PrecisionPolicy.of("mixquant-fp8").model_copy(update={"row_threshold": 1}))
    found.decode_rows = 4
    assert mode(found, (50, 3, 2), (10, 20, 4), DECODE) is Mode.EXACT
    assert mode(found, (50, 3, 5), (10, 20, 4), DECODE) is Mode.MIXED


def test_reproducible_never_runs_a_prefill_row_exact() -> None:
    found = routing(PrecisionPolicy.of("mixquant-fp8").model_copy(update={"reproducible": True}))
    assert mode(found, (50, 3, 1)) is Mode.QUANTIZED
    assert mode(found, (50, 3, 1), DECODE) is Mode.MIXED
    assert mode(found, (50, 3, 9), *[DECODE] * 200) is Mode.MIXED


def test_uniform_quantizes_every_row() -> None:
    found = routing("uniform-fp8")
    assert mode(found, DECODE) is Mode.QUANTIZED
    assert found.modes(8, piecewise=False) == [steps.QUANTIZED]
    with pytest.raises(ConfigError, match="row_threshold=5"):
        routing(PrecisionPolicy.of("uniform-fp8").model_copy(update={"row_threshold": 5}))


def test_another_policy_keeps_to_the_graphs_that_were_captured() -> None:
    register()
    found = routing(pure=100, mixed=700)
    found.measured = found.thresholds
    state = Runtime(PrecisionPolicy.of("mixquant-fp8"), HOPPER, switchable=False)
    found.runtime, state.gpu = state, found
    state.measured_threshold = 100
    update = PrecisionPolicy.of("mixquant-fp8").model_copy
    for policy in (PrecisionPolicy.of("uniform-fp8"), update(update={"reproducible": True})):
        with pytest.raises(ConfigError, match=r"other graphs.*start another engine"):
            state.set_policy(policy)
    assert mode(found, (600, 0, 600), DECODE) is Mode.EXACT
    state.set_policy(update(update={"row_threshold": 0}))
    assert mode(found, (600, 0, 600), DECODE) is Mode.MIXED  # not by what was measured at start
    assert mode(found, (600, 0, 9)) is Mode.QUANTIZED
    state.set_policy(update(update={"exact_last_token": True}))
    assert mode(found, (600, 0, 600), DECODE) is Mode.EXACT


def test_the_slot_names_the_exact_rows_and_nothing_else() -> None:
    found = routing()
    assert found.index is not None
    mode(found, (900, 0, 900), DECODE, DECODE)
    assert found.index.tolist() == [900, 901] + [-1] * 62
    mode(found, DECODE, (900, 0, 900))
    assert found.index.tolist() == [0] + [-1] * 63


def test_more_exact_rows_than_the_slot_holds() -> None:
    found = routing()
    routed = found.route(plan(found, (900, 0, 900), *[DECODE] * 100))
    step = steps.step_of(routed)
    assert step is not None
    assert step.index is not None
    assert step.index is not found.index
    assert step.index.tolist() == list(range(900, 1000))
    assert mode(found, (900, 0, 800), *[(10, 20, 4)] * 200) is Mode.EXACT  # half of all rows exact


def test_captured_modes_follow_the_thresholds() -> None:
    found = routing()
    assert [step.mode for step in found.modes(64, piecewise=True)] == [Mode.EXACT]
    assert [step.mode for step in found.modes(512, piecewise=True)] == [Mode.EXACT, Mode.QUANTIZED]
    assert [step.mode for step in found.modes(1024, piecewise=True)] == [Mode.EXACT, Mode.QUANTIZED, Mode.MIXED]
    assert [step.mode for step in found.modes(1024, piecewise=False)] == [Mode.EXACT]


def test_an_operation_on_fewer_rows_than_the_step_runs_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    found = routing()
    routed = found.route(plan(found, (900, 0, 900)))
    monkeypatch.setattr(steps, "step_plan", lambda: routed)
    assert steps.current(900).mode is Mode.QUANTIZED
    assert steps.current(1024).mode is Mode.QUANTIZED  # padded by a graph
    assert steps.current(1).mode is Mode.EXACT
    monkeypatch.setattr(steps, "step_plan", lambda: RowPlan(1, 0, (), ()))
    with pytest.raises(RuntimeError, match="never announced"):
        steps.current(1)


def test_layers_reserve_what_their_twins_weigh() -> None:
    register()
    found = routing()
    found.memory = TwinMemory("a test", lambda: 100_000)
    found.reserve(64, 48)
    assert found.memory.needed == 64 * 48 + 4 * 64
    with pytest.raises(OutOfMemoryError, match="policy 'exact'"):
        found.reserve(4096, 4096)


def test_crossing() -> None:
    exact = {16: 10.0, 64: 10.0, 128: 20.0, 256: 40.0}
    assert crossing(exact, {16: 9.0, 64: 9.0, 128: 12.0, 256: 20.0}) == 15
    assert crossing(exact, {16: 9.0, 64: 11.0, 128: 12.0, 256: 20.0}) == 127
    assert crossing(exact, {16: 12.0, 64: 12.0, 128: 25.0, 256: 50.0}) == 256


def test_chooser_takes_the_next_measured_size() -> None:
    chooser = Chooser()
    assert chooser.pick(torch.float8_e4m3fn, 8, 8, 100) == "torch"
    assert chooser.pick(torch.int8, 8, 8, 100) == "cutlass"
    chooser.learn(torch.float8_e4m3fn, 8, 8, {64: "cutlass", 512: "torch"})
    assert [chooser.pick(torch.float8_e4m3fn, 8, 8, m) for m in (1, 64, 65, 512, 9999)] == [
        "cutlass",
        "cutlass",
        "torch",
        "torch",
        "torch",
    ]
