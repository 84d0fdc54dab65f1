"""The chat model on the scripted engine: what it says, how it streams, what it records."""

import asyncio
import copy
import json
import pickle
import threading
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from mixquant_agents import EngineConfig, MixQuantChatModel, ScriptedEngine, TurnRecord
from mixquant_agents.engine.protocol import EngineRequest, NamedTool
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    GrammarError,
    InvalidSamplingError,
    RequestError,
    TurnTimeoutError,
    UnknownPolicyError,
)


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class City(BaseModel):
    """A city."""

    name: str
    people: int = 0


class CityDict(TypedDict):
    """A city."""

    name: Annotated[str, ..., "its name"]


def weather(city: str) -> str:
    """Tell the weather."""
    return city


CALLS = [{"name": "add", "args": {"a": 3, "b": 4}}, {"name": "weather", "args": {"city": "Zürich"}}]
FULL = ScriptedTurn(text="I look.", reasoning="What to do?", tool_calls=CALLS)


def model_of(*script: Any, **settings: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(script), cycle=True), **settings)


def request_of(model: Any) -> EngineRequest:
    bound = getattr(model, "bound", model)
    return bound.engine.requests[-1]


def comparable(message: AIMessage) -> dict[str, Any]:
    """All of a message but what differs by time: ids and the record's instants and durations."""
    turn = {k: v for k, v in message.response_metadata["turn"].items() if not k.endswith(("seconds", "_id", "_at"))}
    metadata = {**message.response_metadata, "turn": turn}
    fresh = {call["id"]: place for place, call in enumerate([*message.tool_calls, *message.invalid_tool_calls])}
    text = json.dumps([message.content, message.additional_kwargs, message.tool_calls, message.invalid_tool_calls])
    for call_id, place in fresh.items():
        text = text.replace(str(call_id), f"call {place}")
    return {"said": json.loads(text), "metadata": metadata, "usage": message.usage_metadata}


TURNS = {
    "text": ScriptedTurn(text="Hello <there>\n"),
    "nothing": ScriptedTurn(),
    "calls": FULL,
    "parsed": ScriptedTurn(text="I look.", reasoning="What?", tool_calls=CALLS, parsed=True),
    "truncated": ScriptedTurn(tool_calls=[CALLS[0], {"name": "add", "args": '{"a": 3, "b'}]),
    "nameless": ScriptedTurn(text='Well.\n<tool_call>\n{"nam": "add"}\n</tool_call>'),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
async def test_streamed_chunks_add_up_to_the_answer(turn: ScriptedTurn) -> None:
    """Every way of calling gives the same message."""

    def fresh() -> Any:
        return model_of(turn, logprobs=True).bind_tools([add, weather])

    whole = await fresh().ainvoke("hi")
    chunks = [chunk async for chunk in fresh().astream("hi")]
    added = chunks[0]
    for chunk in chunks[1:]:
        added = added + chunk
    first, *rest = await asyncio.to_thread(lambda: list(fresh().stream("hi")))
    sync_added = first + rest if rest else first
    answers = [added, sync_added, await asyncio.to_thread(fresh().invoke, "hi"), (await fresh().abatch(["hi"]))[0]]
    assert [comparable(answer) for answer in answers] == [comparable(whole)] * 4
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert ["turn" in chunk.response_metadata for chunk in chunks].count(True) == 1
    assert "turn" in chunks[-1].response_metadata


async def test_a_full_answer() -> None:
    answer = await model_of(FULL).bind_tools([add, weather]).ainvoke("hi")
    assert answer.content == "I look."
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [(c["name"], c["args"]) for c in CALLS]
    assert len({call["id"] for call in answer.tool_calls}) == 2
    assert answer.additional_kwargs["reasoning_content"] == "What to do?"
    assert answer.content_blocks[0] == {"type": "reasoning", "reasoning": "What to do?"}
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text", "tool_call", "tool_call"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert answer.response_metadata["model_name"] == "scripted"
    turn = TurnRecord(**answer.response_metadata["turn"])
    assert turn.tool_calls == ("add", "weather")
    assert answer.usage_metadata["input_tokens"] == turn.prompt_tokens
    assert answer.usage_metadata["output_token_details"] == {"reasoning": turn.reasoning_tokens}
    json.dumps(answer.response_metadata, allow_nan=False)


async def test_tool_call_chunks_have_stable_index_and_id() -> None:
    pieces: dict[int, list[Any]] = {}
    async for chunk in model_of(FULL).bind_tools([add, weather]).astream("hi"):
        for piece in chunk.tool_call_chunks:
            pieces.setdefault(piece["index"], []).append(piece)
    assert list(pieces) == [0, 1]
    for (first, *later), wanted in zip(pieces.values(), CALLS, strict=True):
        assert first["id"].startswith("call_")
        assert first["name"] == wanted["name"]
        assert all(piece["id"] is None and piece["name"] is None for piece in later)
        assert len(later) > 3
        assert json.loads("".join(piece["args"] for piece in (first, *later))) == wanted["args"]


async def test_a_call_that_was_cut_off_is_invalid_and_never_run() -> None:
    call = {"name": "add", "args": {"a": 3, "b": 4}}
    model = model_of(ScriptedTurn(tool_calls=[call]), max_tokens=22)
    answer = await model.bind_tools([add]).ainvoke("hi")
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.tool_calls == []
    (invalid,) = answer.invalid_tool_calls
    (kept,) = answer.additional_kwargs["unparsed_tool_calls"]
    assert invalid["name"] == "add"
    assert kept["id"] == invalid["id"]
    assert json.dumps(call["args"]).startswith(kept["text"])
    assert "not valid JSON" in kept["error"]


async def test_without_tools_markers_are_text() -> None:
    text = '<tool_call>\n{"name": "f"}\n</tool_call>'
    assert (await model_of(text).ainvoke("hi")).content == text
    assert (await model_of(text).bind_tools([add], tool_choice="none").ainvoke("hi")).content == text


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        (False, "none"),
        ("add", NamedTool("add")),
        ({"type": "function", "function": {"name": "add"}}, NamedTool("add")),
    ],
)
async def test_tool_choice(choice: Any, wanted: Any) -> None:
    model = model_of("x").bind_tools([add], tool_choice=choice, parallel_tool_calls=False)
    await model.ainvoke("hi")
    assert request_of(model).tool_choice == wanted
    assert request_of(model).parallel_tool_calls is False


@pytest.mark.parametrize("choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, {"no": 1}, 3])
def test_a_choice_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError, match=r"subtract|tool_choice"):
        model_of("x").bind_tools([add], tool_choice=choice)


async def test_every_kind_of_tool() -> None:
    schema = {"title": "plain", "description": "A schema.", "type": "object", "properties": {"x": {"type": "integer"}}}
    openai = {"type": "function", "function": {"name": "ready", "parameters": {"type": "object", "properties": {}}}}
    model = model_of("x").bind_tools([add, City, CityDict, weather, schema, openai])
    await model.ainvoke("hi")
    sent = {one["function"]["name"]: one["function"] for one in request_of(model).tools}
    assert list(sent) == ["add", "City", "CityDict", "weather", "plain", "ready"]
    assert sent["City"]["parameters"]["required"] == ["name"]
    assert sent["CityDict"]["parameters"]["properties"]["name"]["description"] == "its name"
    for wrong in ([3], [{"type": "web_search"}], [{}]):
        with pytest.raises(RequestError, match="tool"):
            model_of("x").bind_tools(wrong)
    with pytest.raises(RequestError, match="'add'"):
        await model_of("x").bind_tools([add, add]).ainvoke("hi")


@pytest.mark.parametrize(
    "schema", [City, CityDict, City.model_json_schema()], ids=["pydantic", "TypedDict", "JSON schema"]
)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output(schema: Any, method: Any) -> None:
    name = schema["title"] if isinstance(schema, dict) else schema.__name__
    tells = ScriptedTurn(tool_calls=[{"name": name, "args": {"name": "Bern"}}])
    model = model_of(tells if method == "function_calling" else '{"name": "Bern"}')
    chain = model.with_structured_output(schema, method=method)
    found = await chain.ainvoke("hi")
    assert (found.name if schema is City else found["name"]) == "Bern"
    *_, streamed = [part async for part in chain.astream("hi")]
    assert streamed == found
    request = request_of(model)
    if method == "function_calling":
        assert request.tool_choice == NamedTool(name)
    elif method == "json_mode":
        assert request.schema == {"type": "object"}
    else:
        assert request.schema["properties"]["name"]["type"] == "string"


async def test_structured_output_with_raw_and_errors() -> None:
    chain = model_of("no JSON").with_structured_output(City, include_raw=True)
    result = await chain.ainvoke("hi")
    assert result["raw"].content == "no JSON"
    assert result["parsed"] is None
    assert isinstance(result["parsing_error"], OutputParserException)
    good = await model_of('{"name": "x"}').with_structured_output(City, include_raw=True).ainvoke("hi")
    assert (good["parsed"], good["parsing_error"]) == (City(name="x"), None)
    cut = model_of('{"name": "Bern", "people": 134000}', max_tokens=6)
    with pytest.raises(OutputParserException, match="cut off"):
        await cut.with_structured_output(CityDict).ainvoke("hi")
    for wrong in ({"method": "magic"}, {"method": "json_schema", "schema": None}, {"schema": 3}):
        with pytest.raises(GrammarError):
            model_of("x").with_structured_output(**{"schema": City, **wrong})
    with pytest.raises(RequestError, match="'temprature'"):
        model_of("x").with_structured_output(City, temprature=1)
    with pytest.raises(RequestError, match="at once"):
        await model_of("x").bind_tools([add], response_format={"type": "json_object"}).ainvoke("hi")


async def test_settings_reach_the_engine_and_calls_override_them() -> None:
    model = model_of("x", temperature=0.5, stop=["A"], seed=3, max_tokens=9, top_logprobs=2, cache_salt="mine")
    await model.ainvoke("hi", temperature=0, stop=["B"], priority=4, chat_template_kwargs={"enable_thinking": False})
    request = request_of(model)
    sampling = request.sampling
    assert (sampling.temperature, sampling.stop, sampling.seed, sampling.max_tokens) == (0, ("B",), 3, 9)
    assert (sampling.logprobs, request.cache_salt, request.priority) == (2, "mine", 4)
    assert request.chat_template_kwargs == {"enable_thinking": False}
    await model.ainvoke("hi")
    assert request_of(model).sampling.stop == ("A",)


async def test_logprobs_are_in_the_metadata() -> None:
    answer = await model_of(ScriptedTurn(text=["a", "b\n", "c"])).ainvoke("hi", logprobs=True, top_logprobs=2)
    content = answer.response_metadata["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", "b\n", "c"]
    assert [len(item["top_logprobs"]) for item in content] == [2, 2, 2]
    assert "logprobs" not in (await model_of("x").ainvoke("hi")).response_metadata


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"temprature": 1}, RequestError, "'temprature'"),
        ({"model": "gpt"}, RequestError, "'gpt'"),
        ({"stop": [""]}, InvalidSamplingError, "stop"),
        ({"top_logprobs": 2, "logprobs": False}, InvalidSamplingError, "logprobs=True"),
        ({"response_format": {"type": "xml"}}, GrammarError, "xml"),
    ],
)
async def test_wrong_call_settings_are_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        await model_of("x").ainvoke("hi", **settings)
    with pytest.raises(error, match=words):
        await asyncio.to_thread(model_of("x").invoke, "hi", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temprature": 1}, "no setting 'temprature'"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"model": ""}, "model"),
        ({"engine": object()}, "is no Engine"),
        ({"engine": ScriptedEngine(), "max_model_len": 4096}, "leave them out"),
        ({"engine": ScriptedEngine(), "policy": "exact"}, "leave them out"),
        ({"engine": ScriptedEngine(), "model": "other"}, "leave model out"),
        ({"engine_config": EngineConfig(model="m"), "max_model_len": 4096}, "inside it"),
        ({"engine_config": EngineConfig(model="m"), "model": "n"}, "leave one out"),
        ({"engine_config": EngineConfig(model="m"), "policy": "exact"}, "leave one out"),
        ({"max_model_len": 3}, "max_model_len"),
    ],
)
def test_wrong_model_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixQuantChatModel(**settings)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UnknownPolicyError, match="mixquant-nvfp4"):
        MixQuantChatModel(policy="mixquant-nvfp5")


def test_engine_settings_make_the_engines_config() -> None:
    model = MixQuantChatModel(model="m", policy="exact", max_model_len=4096, dtype="float32", seed=7)
    assert model._config() == EngineConfig(model="m", policy="exact", max_model_len=4096, dtype="float32")
    assert model.profile["max_input_tokens"] == 4096
    whole = MixQuantChatModel(engine_config=EngineConfig(model="n", policy="mixquant-fp8"))
    assert (whole.model, whole.policy_name) == ("n", "mixquant-fp8")


async def test_copies_and_dumps_are_sane() -> None:
    model = model_of("x", temperature=0.5)
    assert model.model_dump()["temperature"] == 0.5
    assert "engine" not in model.model_dump()
    assert model.asdict()["_type"] == "mixquant"
    assert "temperature" in model._get_llm_string()
    assert copy.deepcopy(model).engine is model.engine
    assert (await pickle.loads(pickle.dumps(model)).ainvoke("hi")).content == "x"  # noqa: S301 - our own bytes
    lazy = pickle.loads(pickle.dumps(MixQuantChatModel(model="m", max_model_len=512)))  # noqa: S301
    assert lazy._config().max_model_len == 512


def test_traces_name_the_model() -> None:
    params = model_of("x", temperature=0.5, stop="END", max_tokens=3)._get_ls_params()
    wanted = {"ls_provider": "mixquant", "ls_model_name": "scripted", "ls_temperature": 0.5, "ls_max_tokens": 3}
    assert wanted.items() <= params.items()
    assert params["ls_stop"] == ["END"]


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
async def test_each_token_is_told_once(handler: Any) -> None:
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


async def test_who_disabled_streaming_hears_no_tokens() -> None:
    listener = Tokens()
    await model_of(TOKENS, disable_streaming=True).ainvoke("hi", {"callbacks": [listener]})
    await model_of(TOKENS, disable_streaming="tool_calling").bind_tools([add]).ainvoke("hi", {"callbacks": [listener]})
    assert listener.heard == []


async def test_v1_content() -> None:
    answer = await model_of(FULL, output_version="v1").bind_tools([add, weather]).ainvoke("hi")
    assert [block["type"] for block in answer.content] == ["reasoning", "text", "tool_call", "tool_call"]
    again = await model_of("ok").ainvoke([HumanMessage("hi"), answer, ToolMessage("7", tool_call_id="x")])
    assert again.response_metadata["turn"]["turn_index"] == 1


async def test_records_know_run_thread_and_place() -> None:
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


async def test_failed_turns_are_recorded_too() -> None:
    records: list[TurnRecord] = []
    model = model_of(ScriptedTurn(text=["a", "b", "c"], fail_after=2), recorders=[records.append])
    with pytest.raises(EngineDeadError):
        await model.ainvoke("hi")
    await model.aclose()
    (record,) = records
    assert record.error.startswith("EngineDeadError: ")
    assert (record.aborted, record.decode_tokens, record.prompt_tokens) == (False, 2, None)


async def test_a_timeout_aborts() -> None:
    records: list[TurnRecord] = []
    model = model_of(ScriptedTurn(text=["a"], hang_after=1), recorders=[records.append], timeout=0.05)
    with pytest.raises(TurnTimeoutError, match=r"timeout=0\.05"):
        await model.ainvoke("hi")
    await model.aclose()
    assert (records[0].aborted, records[0].finish_reason) == (True, "abort")
    assert (model.engine.running, model.engine.aborted) == (0, 1)
    assert (await model_of("fast", timeout=5).ainvoke("hi")).content == "fast"


async def test_a_recorder_can_neither_fail_nor_delay_a_turn(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        wants_content = True

        def record(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("broken")

        record_span = link = record

        def flush(self, timeout: float = 5.0) -> bool:
            return True

        def close(self) -> None: ...

    blocked = threading.Event()
    model = model_of("x", recorders=[Broken(), lambda _: blocked.wait(5)])
    answers = await asyncio.wait_for(model.abatch(["hi"] * 3), 2)
    blocked.set()
    await model.aclose()
    assert [answer.content for answer in answers] == ["x"] * 3
    assert caplog.text.count("a recorder failed") == 1


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
    (given,) = seen
    assert given["content"].messages == [{"role": "user", "content": "hi"}]
    assert given["content"].answer["reasoning_content"] == "What to do?"
    assert [call["function"]["name"] for call in given["content"].answer["tool_calls"]] == ["add", "weather"]
    assert len(given["prompt_token_ids"]) > 10


async def test_a_turn_belongs_to_the_span_around_it() -> None:
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


async def test_tokens_are_counted_by_the_engine() -> None:
    model = model_of("x")
    messages = [HumanMessage("one two three")]
    answer = await model.ainvoke(messages)
    assert await model.aget_num_tokens_from_messages(messages) == answer.usage_metadata["input_tokens"]
    assert await asyncio.to_thread(model.get_num_tokens, "one two three") == 3
    with pytest.raises(ConfigError):
        model.get_token_ids("x")


async def test_sync_calls_work_beside_a_running_loop_and_refuse_to_wait_for_themselves() -> None:
    inner = model_of("inner")
    assert inner.invoke("hi").content == "inner"  # blocks this loop, as sync calls do, but does not deadlock
    outer = MixQuantChatModel(engine=ScriptedEngine(lambda _: inner.invoke("hi").content))
    with pytest.raises(RequestError, match="ainvoke"):
        outer.invoke("hi")
    nested = MixQuantChatModel(engine=ScriptedEngine(lambda _: _text(inner)))
    assert await asyncio.to_thread(lambda: nested.invoke("hi").content) == "inner"


async def _text(model: MixQuantChatModel) -> str:
    return str((await model.ainvoke("hi")).content)


async def test_usage_counts_cached_tokens() -> None:
    model = model_of("x")
    text = "A long beginning. " * 20
    first, second = await model.ainvoke(text), await model.ainvoke(text + " And more.")
    assert first.usage_metadata["input_token_details"]["cache_read"] == 0
    assert second.usage_metadata["input_token_details"]["cache_read"] >= 64
    turn = second.response_metadata["turn"]
    assert turn["prompt_tokens"] == turn["cached_tokens"] + turn["prefill_tokens"]


async def test_context_managers_close_what_the_model_made() -> None:
    async with model_of("x") as model:
        assert (await model.ainvoke("hi")).content == "x"
    assert (await model.ainvoke("hi")).content == "x", "a given engine is not the model's to close"


def test_chunks_are_chunks() -> None:
    assert all(isinstance(chunk, AIMessageChunk) for chunk in model_of("a b c").stream("hi"))


async def test_the_shared_engine_is_made_once_with_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedEngine] = []

    def shared_engine(config: EngineConfig) -> ScriptedEngine:
        made.append(ScriptedEngine(["x"], cycle=True, model=config.model))
        return made[-1]

    monkeypatch.setattr("mixquant_agents.chat.model.shared_engine", shared_engine)
    model = MixQuantChatModel(max_model_len=512)
    assert made == []
    answers = await asyncio.gather(*(model.ainvoke("hi") for _ in range(4)), asyncio.to_thread(model.invoke, "hi"))
    assert {answer.response_metadata["model_name"] for answer in answers} == {"embedded"}
    assert len(made) == 1
    await model.aclose()
    await model.aclose()
    with pytest.raises(EngineClosedError):
        await made[0].stream(made[0].requests[0]).asend(None)
    assert (await model.ainvoke("hi")).content == "x", "the next turn starts anew"
    assert len(made) == 2
