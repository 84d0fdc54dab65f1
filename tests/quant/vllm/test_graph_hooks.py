"""The keys of captured graphs, one for each mode, found without comparing; and which compiled piece a step runs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import forward_context
from vllm.compilation.piecewise_backend import PiecewiseBackend, RangeEntry
from vllm.config import CUDAGraphMode, DeviceConfig, VllmConfig
from vllm.config.utils import Range
from vllm.forward_context import BatchDescriptor
from vllm.platforms import current_platform

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops.fusion import FUSE_FROM
from mixquant_agents.quant.router import CapturedGraphs, GraphSettings
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import DRAFT, EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.thresholds import Thresholds
from mixquant_agents.quant.vllm import graph_hooks, runner_hooks
from mixquant_agents.quant.vllm.context import current_step
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


@pytest.mark.parametrize("rows", [1, 64, 128, 129, 264])
def test_drafts_run_the_rewritten_piece_however_few_rows(routed: SimpleNamespace, rows: int) -> None:
    assert start_of_piece(backend(1, FUSE_FROM), rows, DRAFT) == FUSE_FROM
    assert start_of_piece(backend(1, FUSE_FROM, sizes=(rows,)), rows, DRAFT) == rows, "vLLM's own, of that size"


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


# --- contexts, on vLLM's own forward context -------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A configuration whose runtime has captured twins; vLLM's context functions are hooked as in a worker."""
    monkeypatch.setattr(
        current_platform,
        "set_additional_forward_context",
        runner_hooks._forward_context(type(current_platform).set_additional_forward_context),
        raising=False,
    )
    monkeypatch.setattr(
        forward_context,
        "create_forward_context",
        graph_hooks._forward_context(forward_context.create_forward_context),
    )
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    device = DeviceInfo("cuda", "NVIDIA H200", (9, 0))
    settings = GraphSettings(max_num_seqs=256, full_graphs=True)
    runtime = Runtime(PrecisionPolicy.of("mixquant-fp8"), device, switchable=False, graphs=settings)
    runtime.router.prepare(torch.device("cpu"), lambda exact_rows: Thresholds(15, 600))
    config.quant_config = SimpleNamespace(runtime=runtime)
    return config


def run(config: Any, tokens: int, mode: CUDAGraphMode = CUDAGraphMode.PIECEWISE) -> tuple[CUDAGraphMode, Any, StepPlan]:
    """What a forward of the model on ``tokens`` rows finds: graph mode, graph key, and step."""
    with forward_context.set_forward_context(
        None, config, num_tokens=tokens, cudagraph_runtime_mode=mode, batch_descriptor=BatchDescriptor(tokens)
    ):
        context = forward_context.get_forward_context()
        return context.cudagraph_runtime_mode, context.batch_descriptor, current_step(tokens)


def serve(config: Any, tokens: int, *requests: tuple[int, int, int]) -> tuple[CUDAGraphMode, Any, StepPlan]:
    """The same for a step of these requests (prompt length, computed, scheduled), padded to ``tokens``."""
    runtime = config.quant_config.runtime
    runtime.begin_step()
    runtime.plan_step([RequestRows(f"r{i}", *request) for i, request in enumerate(requests)])
    return run(config, tokens)


DECODE = (10, 20, 1)


def captured_graphs(config: Any, tokens: int) -> dict[str, Any]:
    """Capture a size as vLLM does, in each mode; gives the keys."""
    keys = {}
    for step in config.quant_config.runtime.router.captured_modes(tokens, piecewise=True):
        with steps.forced(step):
            mode, key, found = run(config, tokens)
        assert mode is CUDAGraphMode.PIECEWISE
        assert found is step
        keys[key.mixquant] = key
    return keys


def test_steps_replay_the_graph_of_their_mode(engine: Any) -> None:
    keys = captured_graphs(engine, 1024)
    assert set(keys) == {"exact", "quantized", "mixed"}
    router = engine.quant_config.runtime.router

    mode, key, step = serve(engine, 1024, (2000, 0, 1000))
    assert (mode, step.mode) == (CUDAGraphMode.PIECEWISE, Mode.QUANTIZED)
    assert key is keys["quantized"]

    mode, key, step = serve(engine, 1024, (2000, 0, 1000), DECODE)
    assert (mode, step.mode) == (CUDAGraphMode.PIECEWISE, Mode.MIXED)
    assert key is keys["mixed"]
    assert step.exact_rows is router.exact_rows_buffer

    mode, key, step = serve(engine, 1024, (2000, 0, 500), DECODE)
    assert (mode, step.mode) == (CUDAGraphMode.PIECEWISE, Mode.EXACT)
    assert key is keys["exact"]
    assert run(engine, 1024)[1] is keys["exact"], "a draft model's forward in the same step"


def test_steps_without_a_graph_of_their_mode_run_without_one(engine: Any) -> None:
    captured_graphs(engine, 512)
    mode, _, step = serve(engine, 512, (2000, 0, 300), (2000, 0, 205))
    assert (mode, step.mode) == (CUDAGraphMode.PIECEWISE, Mode.QUANTIZED)
    mode, _, step = serve(engine, 768, (2000, 0, 768))
    assert (mode, step.mode) == (CUDAGraphMode.NONE, Mode.QUANTIZED), "this size was not captured"
    captured_graphs(engine, 1024)
    mode, _, step = serve(engine, 1024, (2000, 0, 900), *[DECODE] * 100)
    assert (mode, step.mode) == (CUDAGraphMode.NONE, Mode.MIXED), "more exact rows than the buffer holds"
    assert serve(engine, 96, *[DECODE] * 90)[0] is CUDAGraphMode.PIECEWISE, "an exact graph, of vLLM's own sizes"


def test_full_graphs_and_other_engines_keep_vllms_keys(engine: Any) -> None:
    engine.quant_config.runtime.begin_step()
    with forward_context.set_forward_context(
        None, engine, num_tokens=8, cudagraph_runtime_mode=CUDAGraphMode.FULL, batch_descriptor=BatchDescriptor(8)
    ):
        assert type(forward_context.get_forward_context().batch_descriptor) is BatchDescriptor
    engine.quant_config = None
    assert type(run(engine, 8)[1]) is BatchDescriptor


def test_warm_up_before_capture_runs_without_a_graph(engine: Any) -> None:
    mode, _, step = run(engine, 512)
    assert (mode, step.mode) == (CUDAGraphMode.NONE, Mode.QUANTIZED)
    mode, key, step = run(engine, 8)
    assert (mode, key.mixquant, step.mode) == (CUDAGraphMode.PIECEWISE, "exact", Mode.EXACT)


# --- capture and profiling, on stand-ins for vLLM's -------------------------------------------------------------------


class Manager:
    """Captures as runner V2's graph managers do: inputs outside, a warm-up run, then the capture."""

    def __init__(self, config: Any, sizes: list[tuple[int, str]]) -> None:
        self.vllm_config = config
        self.sizes = sizes

    def capture(self, create_forward_fn: Any, progress_bar_desc: str = "") -> None:
        for tokens, mode in self.sizes:
            desc = SimpleNamespace(num_tokens=tokens, cg_mode=CUDAGraphMode[mode])
            create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
            create_forward_fn(desc, warmup=False)(desc.cg_mode)


class ModelCudaGraphManager(Manager):
    """Of the model itself; other classes are draft models'."""


def captures(manager: Manager) -> list[tuple[int, str, str]]:
    """``(tokens, mode of the graph, mode of the step)`` of each forward that is run for capture."""
    seen: list[tuple[int, str, str]] = []

    def create_forward(desc: Any, warmup: bool) -> Any:
        def forward(mode: CUDAGraphMode) -> None:
            step = steps.forced_step()
            seen.append((desc.num_tokens, mode.name, step.mode.value if step else "vLLM's own"))

        return forward

    graph_hooks._capture_v2(type(manager).capture)(manager, create_forward, progress_bar_desc="")
    assert steps.forced_step() is None
    return seen


def test_capture_of_runner_v2_runs_each_mode(engine: Any) -> None:
    seen = captures(ModelCudaGraphManager(engine, [(1024, "PIECEWISE"), (64, "PIECEWISE"), (8, "FULL")]))
    assert [entry for entry in seen if entry[1] != "NONE"] == [
        (1024, "PIECEWISE", "exact"), (1024, "PIECEWISE", "quantized"), (1024, "PIECEWISE", "mixed"),
        (64, "PIECEWISE", "exact"), (64, "PIECEWISE", "quantized"),
        (8, "FULL", "exact"),
    ]  # fmt: skip
    assert captures(Manager(engine, [(1024, "PIECEWISE")])) == [(1024, "NONE", "exact"), (1024, "PIECEWISE", "exact")]
    other = SimpleNamespace(quant_config=None)
    assert captures(ModelCudaGraphManager(other, [(64, "FULL")]))[-1] == (64, "FULL", "vLLM's own")


def test_capture_of_runner_v1_runs_each_mode(engine: Any) -> None:
    seen: list[str] = []

    def warmup_and_capture(self: Any, desc: Any, cudagraph_runtime_mode: CUDAGraphMode, **kwargs: Any) -> None:
        step = steps.forced_step()
        seen.append(step.mode.value if step else "vLLM's own")

    hook = graph_hooks._capture_v1(warmup_and_capture)
    runner = SimpleNamespace(vllm_config=engine)
    hook(runner, SimpleNamespace(num_tokens=1024), cudagraph_runtime_mode=CUDAGraphMode.PIECEWISE)
    hook(runner, SimpleNamespace(num_tokens=8), CUDAGraphMode.FULL)
    runner.vllm_config = SimpleNamespace(quant_config=None)
    hook(runner, SimpleNamespace(num_tokens=8), CUDAGraphMode.FULL)
    assert seen == ["exact", "quantized", "mixed", "exact", "vLLM's own"]


def test_profile_run_takes_what_needs_the_most_memory(engine: Any) -> None:
    runtime = engine.quant_config.runtime
    runtime.router.exact_rows_buffer = None
    seen: list[StepPlan | None] = []
    hook = graph_hooks._profile_run(lambda self: seen.append(steps.forced_step()))
    hook(SimpleNamespace(vllm_config=engine, device=torch.device("cpu")))
    (step,) = seen
    assert step is not None
    assert (step.mode, step.rows) == (Mode.MIXED, 0)
    assert step.exact_rows is runtime.router.exact_rows_buffer
    assert step.exact_rows is not None
