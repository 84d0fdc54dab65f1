"""``OpenAIEngine`` against a real HTTP server that speaks chat completions over server-sent events."""

import asyncio
from typing import Any

import pytest
from openai_double import Server, call, piece, usage

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.base import Delta, EngineRequest, NamedTool, Sampling
from mixquant_agents.errors import (
    ContextOverflowError,
    EngineClosedError,
    MixQuantError,
    ModelNotFoundError,
    RemoteEngineError,
    RequestError,
)

USER = [{"role": "user", "content": "hi"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def ask(**fields: Any) -> EngineRequest:
    return EngineRequest(request_id="r", messages=USER, **fields)


async def read(engine: OpenAIEngine, request: EngineRequest | None = None) -> list[Delta]:
    return [delta async for delta in engine.stream(request or ask())]


async def test_answer_has_text_counts_and_times(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [
        piece(role="assistant", content=""),
        piece(content="Hel"),
        piece(content="lo"),
        piece(finish="stop"),
        usage(20, 3, prompt_tokens_details={"cached_tokens": 16}),
    ]
    *_, last = deltas = await read(engine)
    assert "".join(delta.content for delta in deltas) == "Hello"
    assert last.finish_reason == "stop"
    assert (last.counts.prompt_tokens, last.counts.cached_tokens, last.counts.prefill_tokens) == (20, 16, 4)
    assert (last.counts.decode_tokens, last.counts.quantized_tokens) == (3, None)
    assert last.times.timing_source == "client"
    assert last.times.itl_mean_seconds == pytest.approx(last.times.decode_seconds / 2)
    await engine.start()
    assert engine.info.max_model_len == 4096


async def test_count_that_the_server_leaves_out_is_unknown(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="x"), piece(finish="length"), usage(5, 1)]
    counts = (await read(engine))[-1].counts
    assert counts.cached_tokens is None
    assert counts.prefill_tokens is None
    assert counts.reasoning_tokens is None


async def test_turn_through_the_chat_model(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [
        piece(reasoning="So "),
        piece(reasoning_content="then."),
        piece(content="I add."),
        call(0, "call_a", "add", '{"a"'),
        call(0, None, None, ": 3}"),
        call(1, "call_b", "now", None),
        piece(finish="tool_calls"),
        usage(9, 8, completion_tokens_details={"reasoning_tokens": 2}, prompt_tokens_details={"cached_tokens": 0}),
    ]
    now = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    model = MixQuantChatModel(engine=engine).bind_tools([ADD, now])
    answer = await model.ainvoke("hi")
    assert answer.content == "I add."
    assert answer.additional_kwargs["reasoning_content"] == "So then."
    assert [(one["name"], one["args"], one["id"]) for one in answer.tool_calls] == [
        ("add", {"a": 3}, "call_a"),
        ("now", {}, "call_b"),
    ]
    assert answer.usage_metadata["output_token_details"] == {"reasoning": 2}
    assert answer.response_metadata["turn"]["engine"] == "openai"
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("place", [0, None])
async def test_calls_of_one_index_stay_apart(server: Server, engine: OpenAIEngine, place: Any) -> None:
    pieces = [call(place, name, "add", f'{{"a": {value}') for name, value in (("one", 1), ("two", 2))]
    server.chunks = [
        pieces[0],
        call(place, "one", "add", "}"),
        pieces[1],
        call(place, None, None, "}"),
        piece(finish="stop"),
    ]
    answer = await MixQuantChatModel(engine=engine).bind_tools([ADD]).ainvoke("hi")
    assert [(one["id"], one["args"]) for one in answer.tool_calls] == [("one", {"a": 1}), ("two", {"a": 2})]


async def test_call_against_tool_choice_none_is_invalid(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="Well."), call(0, "call_a", "add", '{"a": 3}'), piece(finish="tool_calls")]
    answer = await MixQuantChatModel(engine=engine).bind_tools([ADD], tool_choice="none").ainvoke("hi")
    assert (answer.content, answer.tool_calls) == ("Well.", [])
    assert answer.response_metadata["finish_reason"] == "stop"
    (kept,) = answer.additional_kwargs["unparsed_tool_calls"]
    assert kept["text"] == 'add{"a": 3}'
    assert "tool_choice is 'none'" in kept["error"]


async def test_settings_reach_the_server(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="{}"), piece(finish="stop")]
    sampling = Sampling(
        temperature=0.5,
        top_k=7,
        max_tokens=9,
        stop=("END",),
        seed=3,
        logprobs=2,
        ignore_eos=True,
        extra={"length_penalty": 2},
    )
    await read(
        engine,
        ask(
            sampling=sampling,
            tools=[ADD],
            tool_choice=NamedTool("add"),
            parallel_tool_calls=False,
            cache_salt="s",
            chat_template_kwargs={"enable_thinking": False},
            trace_context={"traceparent": "00-1-2-01"},
        ),
    )
    body = server.bodies[0]
    wanted = {
        "temperature": 0.5,
        "top_k": 7,
        "max_tokens": 9,
        "stop": ["END"],
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "ignore_eos": True,
        "length_penalty": 2,
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
        "cache_salt": "s",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert {name: body[name] for name in wanted} == wanted
    assert server.headers[0]["traceparent"] == "00-1-2-01"
    await read(engine, ask(schema={"type": "object", "properties": {"a": {"type": "integer"}}}))
    await read(engine, ask(schema={"type": "object"}))
    assert server.bodies[1]["response_format"]["json_schema"]["schema"]["properties"] == {"a": {"type": "integer"}}
    assert server.bodies[2]["response_format"] == {"type": "json_object"}
    await read(engine, ask(schema={"type": "object", "properties": {"a": {"type": "integer"}}}, json_mode=True))
    assert server.bodies[3]["response_format"]["type"] == "json_schema", "a server with a grammar holds JSON mode to it"
    assert "strict" not in server.bodies[3]["response_format"]["json_schema"]


async def test_logprobs_are_read(server: Server, engine: OpenAIEngine) -> None:
    top = [{"token": "a", "logprob": -0.1, "bytes": None}]
    content = [{"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    server.chunks = [piece(content="a", logprobs={"content": content}), piece(finish="stop")]
    assert (await read(engine))[0].logprobs[0].top == (("a", -0.1),)


async def test_cancelled_turn_disconnects(server: Server, engine: OpenAIEngine) -> None:
    server.hang = True
    model = MixQuantChatModel(engine=engine)
    got = asyncio.Event()

    async def reader() -> None:
        async for _ in model.astream("hi"):
            got.set()

    task = asyncio.create_task(reader())
    await asyncio.wait_for(got.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.disconnected.wait(), 5)


async def test_stream_that_is_left_disconnects(server: Server, engine: OpenAIEngine) -> None:
    server.hang = True
    stream = engine.stream(ask())
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(server.disconnected.wait(), 5)


TOO_LONG = (
    "This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (400, "temperature must be at least 0", RequestError, "temperature"),
        (400, TOO_LONG, ContextOverflowError, "5000"),
        (401, "bad key", RemoteEngineError, "api_key"),
        (403, "not yours", RemoteEngineError, "api_key"),
        (404, "The model `m` does not exist.", ModelNotFoundError, "'m'"),
        (422, "no", RequestError, "no"),
        (429, "slow down", RemoteEngineError, "429"),
        (500, "boom", RemoteEngineError, "boom"),
        (503, "busy", RemoteEngineError, "503"),
    ],
)
async def test_status_is_translated(
    server: Server, engine: OpenAIEngine, status: int, message: str, kind: type[MixQuantError], words: str
) -> None:
    server.status = (status, {"error": {"message": message, "type": "x", "code": status}})
    with pytest.raises(kind, match=words):
        await read(engine)


async def test_error_in_the_stream_is_raised(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="a"), {"error": {"message": "EngineCore died", "code": 500}}]
    with pytest.raises(RemoteEngineError, match="EngineCore died"):
        await read(engine)


@pytest.mark.parametrize("break_off", [True, False], ids=["broken off", "ended early"])
async def test_answer_without_an_end_is_an_error(server: Server, engine: OpenAIEngine, break_off: bool) -> None:
    server.chunks, server.break_off, server.done = [piece(content="a")], break_off, False
    records: list[Any] = []
    model = MixQuantChatModel(engine=engine, recorders=[records.append])
    with pytest.raises(RemoteEngineError) as caught:
        await model.ainvoke("hi")
    await model.aclose()
    assert "RemoteEngineError" in records[0].error
    assert caught.value.__cause__ is not caught.value, "who walks along the causes comes to an end"


async def test_server_that_is_none_cannot_be_reached() -> None:
    engine = OpenAIEngine("m", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(RemoteEngineError, match="cannot be reached"):
        await engine.start()
    await engine.aclose()


@pytest.mark.parametrize(
    ("path", "words"), [("/empty", None), ("/page", "not as a chat completions server"), ("/none", "ends in /v1")]
)
async def test_address_of_something_else_is_told(server: Server, path: str, words: str | None) -> None:
    engine = OpenAIEngine("m", base_url=server.url.removesuffix("/v1") + path, max_retries=0)
    try:
        if words is None:
            await engine.start()
            assert engine.info.max_model_len is None
            with pytest.raises(RequestError, match="cannot count"):
                await engine.count_tokens(USER)
            return
        with pytest.raises(MixQuantError, match=words):
            await MixQuantChatModel(engine=engine).ainvoke("hi")
    finally:
        await engine.aclose()


async def test_tokens_are_counted_by_the_server(server: Server, engine: OpenAIEngine) -> None:
    assert await engine.count_tokens([{"role": "user", "content": "one two three"}]) == 3


async def test_token_ids_and_turns_of_a_closed_engine_are_refused(server: Server, engine: OpenAIEngine) -> None:
    with pytest.raises(RequestError, match="prompt_token_ids"):
        await read(engine, ask(prompt_token_ids=[1]))
    await engine.aclose()
    with pytest.raises(EngineClosedError):
        await read(engine)


async def test_engine_serves_several_loops(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="Hello"), piece(finish="stop"), usage(1, 1)]
    model = MixQuantChatModel(engine=engine)
    here = await model.ainvoke("hi")
    there = await asyncio.to_thread(model.invoke, "hi")
    fresh = await asyncio.to_thread(lambda: asyncio.run(model.ainvoke("hi")))
    assert here.content == there.content == fresh.content == "Hello"
