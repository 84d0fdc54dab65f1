"""Who watches a turn: callbacks hear each token once, recorders get one record whatever happens."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from chat_doubles import FULL, add, model_of, weather
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage

from mixquant_agents import MixQuantChatModel, TurnRecord
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import EngineDeadError, TurnTimeoutError
from mixquant_agents.records import TurnCounts


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.threads: set[int] = set()

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.heard.append(token)
        self.threads.add(threading.get_ident())


class AsyncTokens(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.heard.append(token)


TOKENS = ScriptedTurn(text=["one ", "two ", "three"])


HEARD = ["one ", "two ", "three", ""]


@pytest.mark.parametrize("handler", [Tokens, AsyncTokens])
async def test_callbacks_hear_each_token_once(handler: Any) -> None:
    """``invoke`` tells its tokens too (tracers see the time to the first one), and streaming tells them once."""
    model = model_of(TOKENS)
    for call in ("ainvoke", "astream", "astream_events"):
        config = {"callbacks": [listener := handler()]}
        if call == "ainvoke":
            await model.ainvoke("hi", config)
        elif call == "astream":
            _ = [chunk async for chunk in model.astream("hi", config)]
        else:
            events = [event async for event in model.astream_events("hi", config, version="v2")]
            assert [e["data"]["chunk"].content for e in events if e["event"] == "on_chat_model_stream"] == HEARD
        assert listener.heard == HEARD, call
    listener = handler()
    stream = await model.astream_events("hi", {"callbacks": [listener]}, version="v3")
    assert (await stream.output).text == "one two three"
    assert listener.heard == HEARD


def test_sync_callbacks_run_in_the_callers_thread() -> None:
    model = model_of(TOKENS)
    for call in (model.invoke, lambda *args: list(model.stream(*args))):
        listener = Tokens()
        call("hi", {"callbacks": [listener]})
        assert listener.heard == HEARD
        assert listener.threads == {threading.get_ident()}


async def test_callbacks_hear_no_tokens_where_streaming_is_disabled() -> None:
    listener = Tokens()
    await model_of(TOKENS, disable_streaming=True).ainvoke("hi", {"callbacks": [listener]})
    await model_of(TOKENS, disable_streaming="tool_calling").bind_tools([add]).ainvoke("hi", {"callbacks": [listener]})
    assert listener.heard == []


async def test_record_knows_run_thread_and_turn_index() -> None:
    records: list[TurnRecord] = []
    model = model_of("x", recorders=[records.append])
    history = [HumanMessage("a"), AIMessage("b"), HumanMessage("c"), AIMessage("d"), HumanMessage("e")]
    config = {"configurable": {"thread_id": "T"}}
    answers = [
        await model.ainvoke(history, config),
        [chunk async for chunk in model.astream(history, config)][-1],
        await asyncio.to_thread(model.invoke, history, config),
        (await asyncio.to_thread(lambda: list(model.stream(history, config))))[-1],
        await (await model.astream_events(history, config, version="v3")).output,
        await asyncio.to_thread(lambda: model.stream_events(history, config, version="v3").output),
    ]
    await model.aclose()
    assert len(records) == 6
    for record, answer in zip(records, answers, strict=True):
        assert (record.thread_id, record.turn_index) == ("T", 2)
        assert record.run_id is not None
        assert record.run_id in answer.id
        assert answer.response_metadata["turn"] == record.model_dump(mode="json")


async def test_record_of_a_failed_turn() -> None:
    records: list[TurnRecord] = []
    model = model_of(ScriptedTurn(text=["a", "b", "c"], fail_after=2), recorders=[records.append])
    with pytest.raises(EngineDeadError):
        await model.ainvoke("hi")
    await model.aclose()
    (record,) = records
    assert record.error == "EngineDeadError"
    assert (record.aborted, record.decode_tokens, record.prompt_tokens) == (False, 2, 10)


async def test_timeout_aborts_the_turn() -> None:
    records: list[TurnRecord] = []
    model = model_of(ScriptedTurn(text=["a"], hang_after=1), recorders=[records.append], timeout=0.05)
    with pytest.raises(TurnTimeoutError, match=r"timeout=0\.05"):
        await model.ainvoke("hi")
    await model.aclose()
    assert (records[0].aborted, records[0].finish_reason) == (True, "abort")
    assert (model.engine.running, model.engine.aborted) == (0, 1)
    assert (await model_of("fast", timeout=5).ainvoke("hi")).content == "fast"


async def test_timeout_of_the_engine_is_not_the_turn_s() -> None:
    records: list[TurnRecord] = []
    model = model_of(TimeoutError("the tool server is slow"), recorders=[records.append], timeout=60)
    with pytest.raises(TimeoutError, match="tool server") as caught:
        await model.ainvoke("hi")
    await model.aclose()
    assert not isinstance(caught.value, TurnTimeoutError)
    assert not records[0].aborted


async def test_record_of_a_turn_that_the_engine_aborts() -> None:
    records: list[TurnRecord] = []
    model = model_of(ScriptedTurn(text="half an", finish_reason="abort"), recorders=[records.append])
    answer = await model.ainvoke("hi")
    await model.aclose()
    assert (records[0].aborted, records[0].finish_reason) == (True, "abort")
    assert answer.response_metadata["turn"]["aborted"]


async def test_record_of_a_turn_that_ends_with_the_program() -> None:
    records: list[TurnRecord] = []
    model = model_of(SystemExit(3), recorders=[records.append])
    with pytest.raises(SystemExit):
        await anext(model._achunks([HumanMessage("hi")], None, None, {}, None))
    await model.aclose()
    assert records[0].aborted


async def test_recorder_can_neither_fail_nor_delay_a_turn(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        wants_content = True

        def record(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("broken")

        record_span = link = record

        def flush(self, timeout: float = 5.0) -> bool:
            return True

        def close(self) -> None: ...

    blocked = threading.Event()
    model = model_of("x", recorders=[Broken(), Broken(), lambda _: blocked.wait(5)])
    answers = await asyncio.wait_for(model.abatch(["hi"] * 3), 2)
    blocked.set()
    await model.aclose()
    assert [answer.content for answer in answers] == ["x"] * 3
    assert caplog.text.count("Broken object at") == 2, "each is told of once"


async def test_recorders_get_the_content_they_ask_for() -> None:
    seen: list[dict[str, Any]] = []

    class Keeper:
        wants_content = True

        def record(self, turn: TurnRecord, **given: Any) -> None:
            seen.append(given)

        record_span = link = record

        def flush(self, timeout: float = 5.0) -> bool:
            return True

        def close(self) -> None: ...

    await model_of(FULL, recorders=[Keeper()]).bind_tools([add, weather]).ainvoke("hi")
    plain = Keeper()
    plain.wants_content = False
    await model_of(FULL, recorders=[Keeper(), plain]).ainvoke("hi")
    given, wanted, unwanted = seen
    assert (wanted["content"] is None, unwanted["content"]) == (False, None)
    assert given["content"].messages == [{"role": "user", "content": "hi"}]
    assert given["content"].answer["reasoning_content"] == "What to do?"
    assert [call["function"]["name"] for call in given["content"].answer["tool_calls"]] == ["add", "weather"]
    assert len(given["prompt_token_ids"]) > 10


async def test_span_of_another_kind_fails_no_turn() -> None:
    from opentelemetry import trace

    class Broken(trace.NonRecordingSpan):
        def get_span_context(self) -> Any:
            raise RuntimeError("no context")

    with trace.use_span(Broken(trace.INVALID_SPAN_CONTEXT)):
        answer = await model_of("x").ainvoke("hi")
    assert answer.content == "x"


async def test_trace_context_is_of_the_span_around_the_turn() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    model = model_of("x")
    with TracerProvider().get_tracer("test").start_as_current_span("outer") as span:
        await model.ainvoke("hi")
        await asyncio.to_thread(model.invoke, "hi")
    await model.ainvoke("hi")
    inside, sync, outside = model.engine.requests
    trace = f"{span.get_span_context().trace_id:032x}"
    assert trace in inside.trace_context["traceparent"]
    assert trace in sync.trace_context["traceparent"]
    assert outside.trace_context is None


class Odd(Engine):
    """An engine of somebody else's whose books do not add up."""

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine="odd", model="m", emulated="perhaps")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        yield Delta(content="The lake is deep.")
        yield Delta(finish_reason="stop", counts=TurnCounts.model_construct(prompt_tokens=-3, decode_tokens="many"))


async def test_answer_is_worth_more_than_its_record(caplog: pytest.LogCaptureFixture) -> None:
    records: list[TurnRecord] = []
    model = MixQuantChatModel(engine=Odd(), recorders=[records.append])
    answer = await model.ainvoke("How deep?")
    await model.aclose()
    assert answer.content == "The lake is deep."
    (record,) = records
    assert (record.engine, record.prompt_tokens, record.emulated, record.finish_reason) == ("odd", None, None, "stop")
    assert "cannot be recorded" in caplog.text
