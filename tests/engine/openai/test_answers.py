"""Answers of servers that leave fields out, null them, or fill them with something else, over real HTTP."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_double import Server, event, piece, usage

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.base import EngineRequest, Sampling, TokenLogprob
from mixquant_agents.engine.openai import engine as engine_module
from mixquant_agents.engine.openai.answer import Answer
from mixquant_agents.engine.openai.events import DONE, EventReader, Unreadable
from mixquant_agents.errors import RemoteEngineError
from mixquant_agents.records import TurnRecord
from mixquant_agents.unicode import well_formed

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


async def answer_of(engine: OpenAIEngine, **bound: Any) -> tuple[Any, TurnRecord]:
    records: list[TurnRecord] = []
    model = MixQuantChatModel(engine=engine, recorders=[records.append])
    answer = await (model.bind_tools(bound.pop("tools"), **bound) if bound else model).ainvoke("hi")
    await model.aclose()
    return answer, records[0]


def without(chunk: dict[str, Any], *names: str) -> dict[str, Any]:
    choice = {name: value for name, value in chunk["choices"][0].items() if name not in names}
    return {**chunk, "choices": [choice]}


def with_choice(**fields: Any) -> dict[str, Any]:
    return {**piece(), "choices": [{"index": 0, **fields}]}


HELLO = [piece(content="Hel"), piece(content="lo")]
STOP = piece(finish="stop")


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([HELLO[0], with_choice(delta=None), HELLO[1], STOP], id="null delta in the middle"),
        pytest.param([*HELLO, with_choice(delta=None, finish_reason="stop")], id="null delta on the last chunk"),
        pytest.param([*HELLO, with_choice(finish_reason="stop")], id="no delta on the last chunk"),
        pytest.param([HELLO[0], with_choice(), HELLO[1], STOP], id="choice with nothing in it"),
        pytest.param([{**piece(), "choices": None}, *HELLO, STOP], id="null choices"),
        pytest.param([{}, *HELLO, {"choices": []}, STOP], id="no choices"),
        pytest.param([None, *HELLO, 7, [], "x", STOP], id="events that are no objects"),
        pytest.param([{"choices": [None]}, {"choices": {}}, *HELLO, STOP], id="choices that are none"),
        pytest.param([*HELLO, STOP, STOP], id="two last chunks"),
        pytest.param([*HELLO, STOP, piece(finish="")], id="an empty reason after the reason"),
        pytest.param([piece(finish="", content="Hel"), HELLO[1], STOP], id="an empty reason before the reason"),
        pytest.param([without(HELLO[0], "finish_reason", "logprobs", "index"), HELLO[1], STOP], id="fields left out"),
        pytest.param([b": keep-alive\n\n", event(HELLO[0]), b"\n\n\n", event(HELLO[1]), event(STOP)], id="comments"),
        pytest.param([b"data: ping\n\n", *HELLO, STOP, b"data: {\n\n"], id="events that are no JSON"),
        pytest.param([event(HELLO[0]).replace(b"\n", b"\r\n"), event(HELLO[1]), STOP], id="other line ends"),
        pytest.param([b"data:" + json.dumps(HELLO[0]).encode() + b"\n\n", HELLO[1], STOP], id="no blank after data"),
        pytest.param([*HELLO], id="[DONE] alone"),
        pytest.param([*HELLO, STOP, {"error": {"message": "no counts"}}], id="an error behind the end"),
        pytest.param([piece(content=[{"type": "text", "text": "Hel"}]), HELLO[1], STOP], id="content in blocks"),
        pytest.param([piece(refusal="Hello"), STOP], id="a refusal is text"),
        pytest.param([with_choice(message={"content": "Hello"}, finish_reason="stop")], id="message for delta"),
        pytest.param([*HELLO, with_choice(message={"content": "Hello"}, delta={}, finish_reason="stop")], id="both"),
        pytest.param([*HELLO, piece(tool_calls=[{"index": 0, "function": None}]), STOP], id="a call that is none"),
        pytest.param([*HELLO, piece(tool_calls=[None, 3, {}]), piece(tool_calls="x"), STOP], id="calls that are none"),
        pytest.param([*HELLO, piece(tool_calls=[{"index": 0, "id": "a"}]), STOP], id="an id and no call"),
        pytest.param([b"\xef\xbb\xbf" + event(HELLO[0]), HELLO[1], STOP], id="a byte order mark"),
        pytest.param([piece("null", content="Hel"), piece("None", content="lo"), STOP], id="reasons in words for none"),
        pytest.param([{**chunk, "error": {"code": 0, "message": ""}} for chunk in (*HELLO, STOP)], id="empty errors"),
        pytest.param([with_choice(text="Hel"), with_choice(text="lo"), STOP], id="text for delta"),
        pytest.param([b"{ oh\n\n", *HELLO, STOP], id="a bracket before the events"),
    ],
)
async def test_answer_of_odd_chunks_is_whole(server: Server, engine: OpenAIEngine, chunks: list[Any]) -> None:
    server.chunks = chunks
    answer, record = await answer_of(engine, tools=[ADD], tool_choice="auto")
    assert (answer.content, answer.tool_calls, answer.invalid_tool_calls) == ("Hello", [], [])
    assert answer.response_metadata["finish_reason"] == "stop"
    assert (record.finish_reason, record.error) == ("stop", None)


@pytest.mark.parametrize("end", [b"", b"data: {\n\n"], ids=["nothing", "half an event"])
async def test_answer_is_whole_when_the_connection_breaks_behind_its_end(
    server: Server, engine: OpenAIEngine, end: bytes
) -> None:
    server.chunks, server.break_off = [*HELLO, STOP, end], True
    answer, record = await answer_of(engine)
    assert answer.content == "Hello"
    assert (record.error, record.prompt_tokens) == (None, None)


async def test_answer_does_not_wait_for_counts_that_do_not_come(
    server: Server, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_AFTER_FINISH_SECONDS", 0.1)
    server.chunks, server.stall = [*HELLO, STOP], 30.0
    answer, _ = await answer_of(engine)
    assert answer.content == "Hello"


@pytest.mark.parametrize(
    ("server_reason", "reason"),
    [
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("end_turn", "stop"),
        (7, "stop"),
    ],
)
async def test_finish_reason_is_the_servers(
    server: Server, engine: OpenAIEngine, server_reason: Any, reason: str
) -> None:
    server.chunks = [*HELLO, piece(finish=server_reason)]
    answer, record = await answer_of(engine)
    assert answer.response_metadata["finish_reason"] == record.finish_reason == reason


NO_NUMBERS: list[Any] = [None, "", "many", -1, 0.5, True, [], {}, 1e300, "1e999", "-3", float("nan")]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"])
async def test_count_that_is_none_is_unknown(server: Server, engine: OpenAIEngine, name: str, value: Any) -> None:
    counts: dict[str, Any] = {"prompt_tokens": 20, "completion_tokens": 6, "total_tokens": 26}
    details = {"cached_tokens": 4, "reasoning_tokens": 2}
    (counts if name in counts else details)[name] = value
    counts["prompt_tokens_details"] = counts["completion_tokens_details"] = details
    server.chunks = [*HELLO, STOP, {"choices": [], "usage": counts}]
    answer, record = await answer_of(engine)
    assert answer.content == "Hello"
    expected = {"prompt_tokens": 20, "completion_tokens": 6, "cached_tokens": 4, "reasoning_tokens": 2, name: None}
    assert record.prompt_tokens == expected["prompt_tokens"]
    assert record.decode_tokens == expected["completion_tokens"]
    assert record.cached_tokens == expected["cached_tokens"]
    assert record.reasoning_tokens == expected["reasoning_tokens"]
    whole = record.prompt_tokens is not None and record.cached_tokens is not None
    assert record.prefill_tokens == (16 if whole else None)


@pytest.mark.parametrize(("given_count", "count"), [("20", 20), (20.0, 20), ("2e1", 20), (0, 0)])
def test_count_in_another_form_is_read(given_count: Any, count: int) -> None:
    reader = Answer()
    reader.take({"usage": {"prompt_tokens": given_count}})
    assert reader._counts().prompt_tokens == count


async def test_cached_tokens_above_the_prompt_are_unknown(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [
        piece(content="The lake is deep."),
        STOP,
        usage(400, 6, prompt_tokens_details={"cached_tokens": 6400}, completion_tokens_details={"reasoning_tokens": 7}),
    ]
    answer, record = await answer_of(engine)
    assert answer.content == "The lake is deep."
    assert answer.usage_metadata == {"input_tokens": 400, "output_tokens": 6, "total_tokens": 406}
    assert (record.prompt_tokens, record.cached_tokens, record.prefill_tokens) == (400, None, None)
    assert (record.decode_tokens, record.reasoning_tokens) == (6, None)


@pytest.mark.parametrize("last", [{}, None, {"total_tokens": 9}, [], "x", 3], ids=repr)
async def test_usage_that_says_nothing_replaces_none(server: Server, engine: OpenAIEngine, last: Any) -> None:
    server.chunks = [*HELLO, STOP, usage(5, 2), {"choices": [], "usage": last}]
    _, record = await answer_of(engine)
    assert (record.prompt_tokens, record.decode_tokens) == (5, 2)


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": 2, "prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 2},
        {"input_tokens": 5, "output_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
    ],
)
async def test_counts_are_read_by_other_names(server: Server, engine: OpenAIEngine, counts: dict[str, Any]) -> None:
    server.chunks = [*HELLO, STOP, {"choices": [], "usage": counts}]
    _, record = await answer_of(engine)
    assert (record.prompt_tokens, record.decode_tokens, record.cached_tokens) == (5, 2, 3)


async def test_answer_goes_on_where_a_reason_says_that_there_is_none(
    server: Server, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_AFTER_FINISH_SECONDS", 0.1)
    server.chunks, server.stall, server.done = [piece("null", content="Hello")], 0.4, True
    answer, _ = await answer_of(engine)
    assert answer.content == "Hello"


async def test_usage_may_stand_in_the_choice_and_grow(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [
        {**HELLO[0], "usage": {"prompt_tokens": 5, "completion_tokens": 1}},
        HELLO[1],
        with_choice(delta={}, finish_reason="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
    ]
    _, record = await answer_of(engine)
    assert (record.prompt_tokens, record.decode_tokens) == (5, 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"token": "Hel", "logprob": -0.5, "top_logprobs": None}], [TokenLogprob("Hel", -0.5, ())]),
        ([{"token": "Hel", "logprob": -0.5}], [TokenLogprob("Hel", -0.5, ())]),
        ([{"token": "Hel", "logprob": -0.5, "top_logprobs": [None, {"token": "a"}, {"token": "b", "logprob": -1}]}],
         [TokenLogprob("Hel", -0.5, (("b", -1.0),))]),
        ([{"token": None, "logprob": -0.5}, {"token": "x", "logprob": None}, {"logprob": "x"}, None, 3], []),
        ([{"token": "x", "logprob": 10**400}, {"token": "x", "logprob": float("nan")}], []),
        (None, []),
        ("x", []),
        ({}, []),
    ],
)  # fmt: skip
async def test_logprobs_that_are_none_are_left_out(
    server: Server, engine: OpenAIEngine, content: Any, expected: list[TokenLogprob]
) -> None:
    server.chunks = [piece(content="Hello", logprobs={"content": content}), STOP]
    request = EngineRequest(request_id="r", messages=[{"role": "user", "content": "hi"}], sampling=Sampling(logprobs=2))
    deltas = [delta async for delta in engine.stream(request)]
    assert [item for delta in deltas for item in delta.logprobs] == expected
    assert "".join(delta.content for delta in deltas) == "Hello"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_is_read_by_either_name(server: Server, engine: OpenAIEngine, field: str) -> None:
    server.chunks = [piece(**{field: "So."}), piece(**{field: ["no text"]}), *HELLO, STOP]
    answer, _ = await answer_of(engine)
    assert (answer.content, answer.additional_kwargs["reasoning_content"]) == ("Hello", "So.")


async def test_reasoning_in_blocks_of_content(server: Server, engine: OpenAIEngine) -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "So."}]}
    server.chunks = [piece(content=[thought]), piece(content=[{"type": "text", "text": "Hello"}]), STOP]
    answer, _ = await answer_of(engine)
    assert (answer.content, answer.additional_kwargs["reasoning_content"]) == ("Hello", "So.")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a\ud83d", "\ude00b"], "a😀b"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a\ude00b"], "a\ufffdb"),
        (["a", "\ud83d"], "a\ufffd"),
        (["\ud83d\ud83d", "\ude00"], "\ufffd😀"),
        (["a\u2028b\x85\x0b", "\x00"], "a\u2028b\x85\x0b\x00"),
    ],
)
async def test_text_of_surrogates_and_controls_is_well_formed(
    server: Server, engine: OpenAIEngine, pieces: list[str], text: str
) -> None:
    server.chunks = [*(piece(content=part) for part in pieces), STOP]
    answer, _ = await answer_of(engine)
    assert answer.content == text
    server.chunks = [*(piece(reasoning=part) for part in pieces), STOP]
    answer, _ = await answer_of(engine)
    assert answer.additional_kwargs["reasoning_content"] == text


WHOLE = {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": None}
LINES = "\n".join(json.dumps(chunk) for chunk in (*HELLO, STOP))


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/plain", "application/x-ndjson", ""])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(WHOLE), id="whole"),
        pytest.param(json.dumps(WHOLE, indent=2), id="whole, in lines"),
        pytest.param("\ufeff\r\n " + json.dumps(WHOLE, indent="\t").replace("\n", "\r\n"), id="whole, odd beginning"),
        pytest.param(LINES, id="an object a line"),
        pytest.param("".join(event(chunk).decode() for chunk in (*HELLO, STOP)), id="events"),
    ],
)
async def test_form_of_an_answer_is_told_by_itself(server: Server, engine: OpenAIEngine, body: str, kind: str) -> None:
    server.whole = web.Response(body=body.encode(), headers={"Content-Type": kind} if kind else {})
    answer, record = await answer_of(engine)
    assert (answer.content, record.finish_reason) == ("Hello", "stop")


def test_long_line_costs_what_it_is_long() -> None:
    reader = EventReader()
    block = b"x" * 1_000
    started = time.process_time()
    for _ in range(50_000):
        assert list(reader.feed(block)) == []
    assert time.process_time() - started < 5, "joined with each block it would be 1,250 GB to copy"
    assert [len(line) for line in reader._rest[:2]] == [1_000, 1_000]


@given(st.lists(st.text() | st.integers(), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_events_do_not_depend_on_the_blocks(values: list[Any], end: str, data: st.DataObject) -> None:
    lines = [f": note{end}data: {json.dumps(value, ensure_ascii=False)}{end}{end}" for value in values]
    body = ("".join(lines) + f"data: no JSON{end}{end}data: [DONE]").encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    reader = EventReader()
    events = []
    for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True):
        events += reader.feed(body[start:stop])
    events += reader.finish()
    assert events[-2:] == [Unreadable("no JSON"), DONE]
    assert events[:-2] == [json.loads(json.dumps(value)) for value in values]


PAGE = "<!DOCTYPE html><html><body>Please log in</body></html>"


def page() -> web.Response:
    return web.Response(text=PAGE, content_type="text/html")


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (page, "<!DOCTYPE html>.*correct base_url"),
        (lambda: web.json_response({"error": {"message": "no credits", "code": 402}}), "no credits"),
        (lambda: web.json_response({"error": "no credits"}), "no credits"),
        (lambda: web.json_response({"detail": "strange"}), 'begins \'{"detail": "strange"}\''),
        (lambda: web.json_response([1, 2]), r"begins '\[1, 2\]'"),
        (lambda: web.Response(text="{", content_type="application/json"), "begins '{'"),
        (lambda: web.Response(text="", content_type="text/event-stream"), "before it began"),
        (lambda: web.Response(text="Hello", content_type="text/plain"), "begins 'Hello'"),
        (lambda: web.json_response({"choices": [{"delta": "Hello", "finish_reason": "stop"}]}), "begins '{\"choices"),
    ],
)
async def test_body_that_is_no_answer_is_told_by_its_beginning(
    server: Server, engine: OpenAIEngine, whole: Callable[[], web.Response], words: str
) -> None:
    server.whole = whole()
    with pytest.raises(RemoteEngineError, match=words) as caught:
        await answer_of(engine)
    assert "in the middle" not in str(caught.value)
    assert ("correct base_url" in str(caught.value)) == (whole is page)


@pytest.mark.parametrize("content", [42, 1.5, True, {"a": 1}], ids=repr)
async def test_content_that_is_no_text_is_told_as_ours(server: Server, engine: OpenAIEngine, content: Any) -> None:
    server.chunks = [piece(content=content), STOP]
    with pytest.raises(RemoteEngineError, match=r"OpenAIEngine cannot read the answer.*content") as caught:
        await answer_of(engine)
    assert "correct base_url" not in str(caught.value)


async def test_content_that_is_no_text_does_not_cost_the_text(
    server: Server, engine: OpenAIEngine, caplog: pytest.LogCaptureFixture
) -> None:
    server.chunks = [*HELLO, piece(content=42), STOP]
    with caplog.at_level(logging.WARNING):
        answer, _ = await answer_of(engine)
    assert answer.content == "Hello"
    assert "42" in caplog.text


async def test_answer_of_a_server_that_does_not_stream(server: Server, engine: OpenAIEngine) -> None:
    function = {"name": "add", "arguments": '{"a": 3}'}
    message = {"role": "assistant", "content": "Hello", "tool_calls": [{"id": "x", "function": function}]}
    server.whole = web.json_response(
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2},
        }
    )
    answer, record = await answer_of(engine, tools=[ADD], tool_choice="auto")
    assert (answer.content, answer.tool_calls[0]["args"]) == ("Hello", {"a": 3})
    assert (record.prompt_tokens, record.finish_reason) == (5, "tool_calls")


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "EngineCore died", "code": 500}},
        {"error": "EngineCore died"},
        {"object": "error", "message": "EngineCore died", "code": 500},
        b'event: error\ndata: {"message": "EngineCore died"}\n\n',
        b"event: error\ndata: EngineCore died\n\n",
    ],
)
async def test_error_in_mid_stream_is_the_servers(server: Server, engine: OpenAIEngine, error: Any) -> None:
    server.chunks = [HELLO[0], error]
    with pytest.raises(RemoteEngineError, match="EngineCore died"):
        await answer_of(engine)


async def test_error_as_finish_reason_is_an_error(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [HELLO[0], piece(finish="error")]
    with pytest.raises(RemoteEngineError, match="ended with an error"):
        await answer_of(engine)


no_text = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "a", "id"]), inner, max_size=3)
    ),
    max_leaves=5,
)
text_or_not = no_text | st.text(max_size=5)
odd_delta = st.fixed_dictionaries(
    {},
    optional={
        "role": text_or_not,
        "content": no_text.filter(lambda value: not isinstance(value, list)) | st.just(""),
        "reasoning": no_text,
        "reasoning_content": no_text,
        "refusal": no_text,
        "tool_calls": no_text | st.lists(st.fixed_dictionaries({}, optional={"index": text_or_not, "id": text_or_not,
            "function": no_text | st.fixed_dictionaries({}, optional={"name": no_text, "arguments": text_or_not})})),
        "function_call": no_text,
    },
)  # fmt: skip
odd_choice = st.fixed_dictionaries(
    {},
    optional={
        "index": text_or_not,
        "delta": no_text | odd_delta,
        "message": no_text,
        "logprobs": no_text | st.fixed_dictionaries({"content": text_or_not | st.lists(text_or_not)}),
        "usage": text_or_not,
    },
)
details = st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), text_or_not)
counts = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), text_or_not)
    | {"prompt_tokens_details": text_or_not | details, "completion_tokens_details": text_or_not | details},
)
odd_chunk = no_text | st.fixed_dictionaries(
    {}, optional={"id": text_or_not, "choices": no_text | st.lists(no_text | odd_choice), "usage": no_text | counts}
)
odd_event = odd_chunk | st.sampled_from(
    [b"data: {\n\n", b"data:\n\n", b": x\n\n", b"data: \xff\xfe\n\n", b"event: x\n\n"]
)
odd_end = odd_event | st.builds(
    lambda chunk, reason: {"choices": [{**chunk, "finish_reason": reason}]},
    odd_choice,
    st.sampled_from(["stop", "length", "content_filter", "x"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4),
    odd=st.lists(odd_event, max_size=6),
    end=odd_end,
    data=st.data(),
)
async def test_no_streamed_text_is_lost_whatever_else_the_chunks_hold(
    server: Server, engine: OpenAIEngine, texts: list[str], odd: list[Any], end: Any, data: st.DataObject
) -> None:
    chunks: list[Any] = [piece(content=text) for text in texts]
    for event_ in odd:
        chunks.insert(data.draw(st.integers(0, len(chunks))), event_)
    server.chunks = [*chunks, end]
    answer, record = await answer_of(engine, tools=[ADD], tool_choice="auto")
    assert answer.content == well_formed("".join(texts))
    assert answer.tool_calls == []
    assert (record.error, record.aborted) == (None, False)
