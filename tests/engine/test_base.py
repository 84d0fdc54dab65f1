"""The seam is open: an engine of anybody's, registered by nothing, is a full member everywhere above it."""

import asyncio
import inspect
import pickle
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from mixquant_agents import MixQuantChatModel, OpenAIEngine, PrecisionPolicy, ScriptedEngine
from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.report import write_report
from mixquant_agents.dashboard.turn_page import turn_detail
from mixquant_agents.engine import protocol
from mixquant_agents.engine.base import (
    Delta,
    Engine,
    EngineInfo,
    EngineRequest,
    FinishReason,
    SwitchableEngine,
    ToolCallDelta,
)
from mixquant_agents.errors import ConfigError, EngineError, RequestError
from mixquant_agents.records import TurnCounts, TurnRecord
from mixquant_agents.telemetry import QueueRecorder, StoreRecorder
from mixquant_agents.telemetry.export.prometheus import PrometheusSink
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore


class ParrotEngine(Engine):
    """Repeats the last message, word by word, and calls the first tool when asked to."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.closed = False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine="parrot", model="grey", device="cage" if self.started else None, max_model_len=512)

    async def start(self) -> None:
        self.started += 1

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        text = str(request.messages[-1]["content"])
        if text == "die":
            raise EngineError("the parrot fell off its perch")
        reason: FinishReason = "stop"
        try:
            for word in text.split():
                await asyncio.sleep(0)
                yield Delta(content=f"{word} ")
            if request.tool_choice == "required":
                name = request.tools[0]["function"]["name"]
                yield Delta(tool_calls=(ToolCallDelta(0, None, name, "{}"),))
                reason = "tool_calls"
            yield Delta(finish_reason=reason, counts=TurnCounts(prompt_tokens=len(text.split()), decode_tokens=2))
        finally:
            self.ended += 1

    async def aclose(self) -> None:
        self.closed = True


NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


async def records_of(engine: Engine, *prompts: str, **bound: Any) -> list[TurnRecord]:
    records: list[TurnRecord] = []
    model: Any = MixQuantChatModel(engine=engine, recorders=[records.append])
    for prompt in prompts:
        try:
            await (model.bind_tools([NOW], **bound) if bound else model).ainvoke(prompt)
        except EngineError:
            continue
    await model.aclose()
    return records


def test_own_engine_is_short() -> None:
    assert len(inspect.getsource(ParrotEngine).splitlines()) < 80


def test_representation_of_an_engine_says_who_it_is() -> None:
    assert (
        repr(ScriptedEngine(["a"], policy="mixquant-fp8")) == "ScriptedEngine(model='scripted', policy='mixquant-fp8')"
    )
    server = OpenAIEngine("m", base_url="http://name:word@127.0.0.1:9/v1", api_key="secret")
    assert repr(server) == "OpenAIEngine(model='m', policy='exact', base_url='http://127.0.0.1:9/v1')"


async def test_record_of_an_own_engine_says_who_it_is() -> None:
    (turn,) = await records_of(ParrotEngine(), "one two three")
    assert (turn.engine, turn.model, turn.policy, turn.device) == ("parrot", "grey", "exact", "cage")
    assert (turn.prompt_tokens, turn.decode_tokens, turn.cached_tokens) == (3, 2, None)
    assert (turn.finish_reason, turn.aborted, turn.error) == ("stop", False, None)
    assert turn.timing_source == "client"
    assert turn.ttft_seconds is not None
    assert turn.total_seconds is not None
    assert 0 < turn.ttft_seconds <= turn.total_seconds


async def test_record_of_an_own_engine_that_fails() -> None:
    turn, after = await records_of(ParrotEngine(), "die", "one")
    assert (turn.engine, turn.error, turn.prompt_tokens) == ("parrot", "EngineError", None)
    assert after.error is None


async def test_calls_of_an_own_engine() -> None:
    (turn,) = await records_of(ParrotEngine(), "what time", tool_choice="required")
    assert (turn.tool_calls, turn.finish_reason) == (("now",), "tool_calls")


async def test_turn_of_an_own_engine_that_is_left_is_aborted() -> None:
    engine, records = ParrotEngine(), []
    model = MixQuantChatModel(engine=engine, recorders=[records.append])
    stream = model.astream("one two three")
    await anext(stream)
    await stream.aclose()
    await model.aclose()
    assert engine.ended == 1
    assert (records[0].aborted, records[0].finish_reason) == (True, "abort")
    assert not engine.closed, "it stays its owner's"


async def test_own_engine_is_in_the_store_the_metrics_and_the_pages(tmp_path: Path) -> None:
    registry, path = CollectorRegistry(), tmp_path / "turns.sqlite"
    store, metrics = StoreRecorder(path), QueueRecorder([PrometheusSink(registry)])
    model = MixQuantChatModel(engine=ParrotEngine(), recorders=[store, metrics])
    for prompt in ("one two", "three"):
        await model.ainvoke(prompt, config={"configurable": {"thread_id": "t"}})
    store.close()
    metrics.close()
    reader = TurnStore(path)
    assert [turn.engine for turn in reader.turns(TurnFilter(thread="t"))] == ["parrot", "parrot"]
    labels = {"model": "grey", "engine": "parrot", "policy": "exact"}
    assert registry.get_sample_value("mixquant_turns_total", {**labels, "outcome": "ok"}) == 2
    assert registry.get_sample_value("mixquant_ttft_seconds_count", labels) == 2
    assert ">parrot</option>" in views.filters_bar(reader, "/", {})
    assert "2 turns in all" in views.overview_page(reader, {"engine": "parrot"})
    assert "2 turns" not in views.overview_page(reader, {"engine": "scripted"})
    (newest, *_) = reader.turns(TurnFilter(thread="t"))
    assert "<dd>parrot</dd>" in turn_detail(reader, newest)
    write_report(path, tmp_path / "report.html", thread="t")
    assert "parrot" in (tmp_path / "report.html").read_text(encoding="utf-8")


async def test_engine_that_says_the_least_has_defaults() -> None:
    class Least(Engine):
        @property
        def info(self) -> EngineInfo:
            return EngineInfo(engine="least", model="m")

        async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
            yield Delta(content="ok", finish_reason="stop")

    async with Least() as engine:
        (turn,) = await records_of(engine, "hi")
        assert engine.start_seconds is None
        with pytest.raises(RequestError, match="'least' cannot count tokens"):
            await engine.count_tokens([{"role": "user", "content": "hi"}])
    assert (turn.engine, turn.decode_tokens, turn.finish_reason) == ("least", None, "stop")


async def test_own_engine_is_closed_by_its_context() -> None:
    async with ParrotEngine() as engine:
        assert not engine.closed
    assert engine.closed


def test_profile_of_an_own_engine_knows_its_window() -> None:
    assert MixQuantChatModel(engine=ParrotEngine()).profile["max_input_tokens"] == 512


@pytest.mark.parametrize("wrong", [object(), ParrotEngine, "parrot"], ids=["object", "class", "text"])
def test_engine_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="engine"):
        MixQuantChatModel(engine=wrong)


def test_engine_without_a_stream_cannot_be_made() -> None:
    class Mute(Engine):
        @property
        def info(self) -> EngineInfo:
            return EngineInfo(engine="mute", model="m")

    with pytest.raises(TypeError, match="stream"):
        Mute()  # type: ignore[abstract]


async def test_scripted_engine_switches_as_the_real_one() -> None:
    engine = ScriptedEngine(["a b c"], cycle=True, policy="exact")
    assert isinstance(engine, SwitchableEngine)
    (exact,) = await records_of(engine, "hello there, what is this about? " * 20)
    await engine.set_policy("uniform-nvfp4")
    assert (engine.policy, engine.info.policy) == (PrecisionPolicy.of("uniform-nvfp4"), "uniform-nvfp4")
    await engine.reset_prefix_cache()
    (uniform,) = await records_of(engine, "hello there, what is this about? " * 20)
    assert (exact.quantized_tokens, exact.cached_tokens, uniform.cached_tokens) == (0, 0, 0)
    assert uniform.quantized_tokens == uniform.prompt_tokens
    stream = engine.stream(engine.requests[-1])
    await anext(stream)
    with pytest.raises(ConfigError, match="1 turns are running"):
        await engine.set_policy("exact")
    await stream.aclose()
    assert pickle.loads(pickle.dumps(engine)).policy == engine.policy  # noqa: S301 - our own


def test_former_place_of_the_seam_still_imports() -> None:
    assert protocol.Engine is Engine
    assert protocol.Capabilities is EngineInfo
    assert protocol.TokenDelta is Delta
    assert set(protocol.__all__) <= set(dir(protocol))
