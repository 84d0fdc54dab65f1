"""Full graphs of small steps: which are captured, which step gets one, and what its attention is told."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import EngineStartError
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.step import EXACT
from mixquant_agents.quant.thresholds import Thresholds
from mixquant_agents.quant.vllm import small_graphs as module
from mixquant_agents.quant.vllm.options import FULL_GRAPHS

H200 = DeviceInfo("cuda", "NVIDIA H200", (9, 0))
PIECES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)


def router(pure: int = 15, mixed: int = 63, seqs: int = 8) -> Router:
    own = Router(resolve(PrecisionPolicy.of("mixquant-fp8"), H200), GraphSettings(seqs, full_graphs=True))
    own.thresholds = Thresholds(pure, mixed)
    own.exact_rows_buffer = torch.full((own.capacity,), -1, dtype=torch.int32)
    return own


class Group(SimpleNamespace):
    def get_metadata_builder(self, number: int) -> Any:
        return SimpleNamespace(get_cudagraph_support=lambda config, spec: SimpleNamespace(name=self.support))


def group(name: str = "FLASH_ATTN", support: str = "ALWAYS") -> Group:
    return Group(backend=SimpleNamespace(get_name=lambda: name), support=support, kv_cache_spec=None)


class Engine:
    """A manager of graphs that captures what it is told to, and vLLM's own choice of a graph."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        own: Router,
        asked: bool | None = True,
        drafter: Any = None,
        **parallel: int,
    ) -> None:
        self.requests: list[RequestRows] = []
        self.runtime = SimpleNamespace(
            router=own, captured=True, full_graph_rows=0, coming_mode=lambda: own.graph_mode(self.requests)
        )
        monkeypatch.setattr(module, "runtime_of", lambda config: self.runtime)
        sizes = {"pipeline_parallel_size": 1, "data_parallel_size": 1, "tensor_parallel_size": 1, **parallel}
        self.vllm_config = SimpleNamespace(
            lora_config=None, parallel_config=SimpleNamespace(**sizes), speculative_config=drafter,
            additional_config={} if asked is None else {FULL_GRAPHS: asked},
        )  # fmt: skip
        self.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
        self.use_breakable_cg, self.max_num_reqs = False, 8
        self.graphs: dict[Any, str] = {}
        self._capture_descs = {
            CUDAGraphMode.PIECEWISE: [BatchExecutionDescriptor(CUDAGraphMode.PIECEWISE, n, None) for n in PIECES],
            CUDAGraphMode.FULL: [BatchExecutionDescriptor(CUDAGraphMode.FULL, 8, 8, uniform_token_count=1)],
        }

    def capture(self, attention: Any, state: Any = None) -> list[Any]:
        state = DefaultModelState.__new__(DefaultModelState) if state is None else state
        module._capture(lambda self, *args: None)(self, None, state, None, None, None, attention)
        self.graphs = dict.fromkeys(self._capture_descs[CUDAGraphMode.FULL], "captured")
        return [desc for desc in self.graphs if isinstance(desc, module._Small)]

    def dispatch(self, *requests: RequestRows) -> Any:
        self.requests = list(requests)
        self.runtime.full_graph_rows = 0
        tokens = sum(request.num_scheduled_tokens for request in requests)

        def original(self: Any, num_reqs: int, num_tokens: int, *args: Any) -> Any:
            size = min(size for size in PIECES if size >= num_tokens)
            return BatchExecutionDescriptor(CUDAGraphMode.PIECEWISE, size, None)

        return module._dispatch(original)(self, len(requests), tokens, None)


def reading(tokens: int, name: str = "a") -> RequestRows:
    return RequestRows(name, 9000, 100, tokens)


def writing(name: str) -> RequestRows:
    return RequestRows(name, 10, 20, 1)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    own = Engine(monkeypatch, router())
    assert own.capture([[group()]])
    return own


def test_each_mode_has_a_graph_from_its_threshold_on(engine: Engine) -> None:
    full = engine.runtime.router.graphs.full
    assert {size for size, _ in full} == {16, 32, 64, 128, 256}
    assert [size for size, mode in full if mode is Mode.QUANTIZED] == [16, 32, 64, 128, 256]
    assert [size for size, mode in full if mode is Mode.MIXED] == [64, 128, 256]
    assert len(set(full.values())) == len(full)
    status = engine.runtime.router.status()["captured_full_graphs"]
    assert status == {"exact": 5, "quantized": 5, "mixed": 3}


def test_manager_that_measured_memory_leaves_its_graphs_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32 captures with one that it throws away, before the one that serves."""
    own = router()
    measuring = Engine(monkeypatch, own)
    assert measuring.capture([[group()]])
    serving = Engine(monkeypatch, own)
    captured = serving.capture([[group()]])
    assert set(captured) == set(own.graphs.full.values())
    assert serving.dispatch(reading(40)).mixquant == "quantized"
    assert len(serving.capture([[group()]])) == len(captured), "captured anew, not twice"


def test_largest_come_first_and_vllms_own_stay(engine: Engine) -> None:
    descs = engine._capture_descs[CUDAGraphMode.FULL]
    sizes = [desc.num_tokens for desc in descs]
    assert sizes == sorted(sizes, reverse=True)
    assert BatchExecutionDescriptor(CUDAGraphMode.FULL, 8, 8, uniform_token_count=1) in descs


def test_captured_step_is_the_mode_in_fused_pieces(engine: Engine) -> None:
    own = engine.runtime.router
    for (_, mode), desc in own.graphs.full.items():
        step = module.captured_step(own, desc)
        assert step is not None
        assert (step.mode, step.fused) == (mode, mode is not Mode.EXACT)
        assert (step.exact_rows is own.exact_rows_buffer) == (mode is Mode.MIXED)
    assert module.captured_step(own, BatchExecutionDescriptor(CUDAGraphMode.FULL, 8, 8)) is None


@pytest.mark.parametrize(
    ("requests", "mode", "rows"),
    [
        ((reading(12),), "exact", 16),
        ((reading(40),), "quantized", 64),
        ((reading(200), writing("b")), "mixed", 256),
        ((reading(40), writing("b")), "exact", 64),
    ],
)
def test_small_step_gets_its_modes_graph(
    engine: Engine, requests: tuple[RequestRows, ...], mode: str, rows: int
) -> None:
    desc = engine.dispatch(*requests)
    assert (desc.mixquant, desc.num_tokens, desc.num_reqs) == (mode, rows, 8)
    assert engine.runtime.full_graph_rows == rows
    assert engine.runtime.router.status()["full_graph_steps"][mode] == 1


def test_larger_steps_and_those_without_a_graph_run_in_pieces(engine: Engine) -> None:
    static = reading(250)._replace(num_computed_tokens=0, exact_first=90)
    for requests in ((reading(257),), (static,)):  # the second has more exact rows than a graph has room for
        assert engine.dispatch(*requests).cg_mode == CUDAGraphMode.PIECEWISE
        assert engine.runtime.full_graph_rows == 0
    many = [reading(4, f"r{number}") for number in range(9)]
    assert engine.dispatch(*many).cg_mode == CUDAGraphMode.PIECEWISE, "more requests than the graph has room for"
    engine.graphs.clear()
    assert engine.dispatch(reading(40)).cg_mode == CUDAGraphMode.PIECEWISE


@pytest.mark.parametrize(
    ("attention", "parallel"),
    [
        ([[group("FLASHINFER")]], {}),
        ([[group(support="UNIFORM_BATCH")]], {}),
        ([[group(), group("TRITON_ATTN")]], {}),
        ([], {}),
        ([[group()]], {"pipeline_parallel_size": 2}),
        ([[group()]], {"data_parallel_size": 2}),
    ],
)
def test_none_where_they_were_not_seen_to_be_right(
    monkeypatch: pytest.MonkeyPatch, attention: Any, parallel: dict[str, int]
) -> None:
    own = Engine(monkeypatch, router(), **parallel)
    assert not own.capture(attention)
    assert engine_pieces(own)


def test_default_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of one precision, on one GPU; with mixed ones, and beside drafters, the graphs have run on none yet."""
    own = Engine(monkeypatch, router(), asked=None)
    assert {desc.mixquant for desc in own.capture([[group()]])} == {"exact", "quantized"}
    assert own.dispatch(reading(40)).mixquant == "quantized"
    assert own.dispatch(reading(200), writing("b")).cg_mode == CUDAGraphMode.PIECEWISE


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({"tensor_parallel_size": 2}, [[group()]]),
        ({"drafter": SimpleNamespace(method="eagle3")}, [[group()]]),
        ({}, [[group()], [group()]]),
    ],
)
def test_what_was_not_measured_wants_to_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], attention: Any
) -> None:
    assert not Engine(monkeypatch, router(), asked=None, **changes).capture(attention)
    assert Engine(monkeypatch, router(), asked=True, **changes).capture(attention)


def test_none_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Engine(monkeypatch, router(), asked=False).capture([[group()]])


def engine_pieces(own: Engine) -> bool:
    return bool(own.dispatch(reading(40)).cg_mode == CUDAGraphMode.PIECEWISE)


def test_attention_is_told_that_the_longest_query_is_the_whole_step(engine: Engine) -> None:
    @dataclasses.dataclass
    class Batch:
        num_scheduled_tokens: Any

    def original(self: Any, batch: Batch, mode: Any) -> int:
        return int(batch.num_scheduled_tokens.max())

    prepare = module._prepare_attn(original)
    batch = Batch(np.array([1, 39], dtype=np.int32))
    assert prepare(engine, batch, None) == 39
    desc = engine.dispatch(reading(40))
    assert prepare(engine, batch, None) == desc.num_tokens == 64
    engine.runtime.full_graph_rows = 0
    with module.capturing(engine.runtime, desc):  # type: ignore[arg-type] # a stand-in
        assert prepare(engine, batch, None) == 64
    assert prepare(engine, batch, None) == 39
    assert batch.num_scheduled_tokens.tolist() == [1, 39], "everybody else sees what is"


def test_plan_that_is_not_what_was_foreseen_fails(engine: Engine) -> None:
    desc = engine.dispatch(reading(40))
    with pytest.raises(EngineStartError, match="mode exact has the graph of mode quantized"):
        module.check_mode(desc, EXACT)
    module.check_mode(BatchExecutionDescriptor(CUDAGraphMode.PIECEWISE, 64, None), EXACT)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 90)), min_size=1, max_size=12))
def test_mode_that_is_foreseen_is_the_one_that_is_routed(rows: list[tuple[int, int, int]]) -> None:
    own = router(pure=31, mixed=47)
    requests = [RequestRows(f"r{number}", *each) for number, each in enumerate(rows)]
    foreseen = own.graph_mode(requests)
    _, step = own.route(list(reversed(requests)))
    if foreseen is None:
        assert step.mode is Mode.MIXED
        assert step.exact_rows is not own.exact_rows_buffer
    else:
        assert step.mode is foreseen
        assert step.mode is not Mode.MIXED or step.exact_rows is own.exact_rows_buffer
