"""The chat model on the scripted engine: every way of calling it gives the same answer."""

import asyncio
import functools
import json
import operator
from typing import Any

import pytest
from chat_doubles import CALLS, FULL, add, model_of, weather
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage

from mixquant_agents import MixQuantChatModel, OpenAIEngine, ScriptedEngine, TurnRecord
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import (
    RequestError,
)


def comparable(message: AIMessage) -> dict[str, Any]:
    """All of a message but what differs by time: ids and the record's instants and durations."""
    turn = {k: v for k, v in message.response_metadata["turn"].items() if not k.endswith(("seconds", "_id", "_at"))}
    metadata = {**message.response_metadata, "turn": turn}
    for call in message.invalid_tool_calls:
        call["error"] = None  # LangChain drops it when chunks are added up; it is in additional_kwargs, too
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
async def test_chunks_of_every_way_add_up_to_the_answer(turn: ScriptedTurn) -> None:
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


async def test_answer_holds_content_reasoning_calls_and_record() -> None:
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


async def test_call_that_was_cut_off_is_invalid_and_never_run() -> None:
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


async def test_markers_without_tools_are_text() -> None:
    text = '<tool_call>\n{"name": "f"}\n</tool_call>'
    assert (await model_of(text).ainvoke("hi")).content == text
    assert (await model_of(text).bind_tools([add], tool_choice="none").ainvoke("hi")).content == text


@pytest.mark.parametrize("parsed", [False, True])
async def test_answer_that_may_hold_no_calls_holds_none(parsed: bool) -> None:
    """Whatever the model writes: it is text, and the finish reason does not speak of calls either."""
    model = model_of(ScriptedTurn(text="I look.", tool_calls=CALLS, parsed=parsed)).bind_tools(
        [add], tool_choice="none"
    )
    answer = await model.ainvoke("hi")
    assert (answer.tool_calls, answer.invalid_tool_calls) == ([], [])
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.text.startswith("I look.\n<tool_call>")
    assert answer.response_metadata["turn"]["tool_calls"] == []


async def test_logprobs_are_in_the_metadata() -> None:
    answer = await model_of(ScriptedTurn(text=["a", "b\n", "c"])).ainvoke("hi", logprobs=True, top_logprobs=2)
    content = answer.response_metadata["logprobs"]["content"]
    assert [item["token"] for item in content] == ["a", "b\n", "c"]
    assert [len(item["top_logprobs"]) for item in content] == [2, 2, 2]
    assert "logprobs" not in (await model_of("x").ainvoke("hi")).response_metadata


async def test_v1_content() -> None:
    answer = await model_of(FULL, output_version="v1").bind_tools([add, weather]).ainvoke("hi")
    assert [block["type"] for block in answer.content] == ["reasoning", "text", "tool_call", "tool_call"]
    again = await model_of("ok").ainvoke([HumanMessage("hi"), answer, ToolMessage("7", tool_call_id="x")])
    assert again.response_metadata["turn"]["turn_index"] == 1
    streamed = [chunk async for chunk in model_of(FULL, output_version="v1").bind_tools([add, weather]).astream("hi")]
    whole = functools.reduce(operator.add, streamed)
    assert [block["type"] for block in whole.content] == ["reasoning", "text", "tool_call", "tool_call"]
    assert (whole.text, [call["name"] for call in whole.tool_calls]) == ("I look.", ["add", "weather"])


async def test_tokens_are_counted_by_the_engine() -> None:
    model = model_of("x")
    messages = [HumanMessage("one two three")]
    answer = await model.ainvoke(messages)
    assert await model.aget_num_tokens_from_messages(messages) == answer.usage_metadata["input_tokens"]
    assert await asyncio.to_thread(model.get_num_tokens, "one two three") == 3
    assert len(await asyncio.to_thread(model.get_token_ids, "one two three")) == 3
    remote = MixQuantChatModel(engine=OpenAIEngine("m", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(RequestError, match="token ids"):
        await asyncio.to_thread(remote.get_token_ids, "x")
    assert model_of("x", custom_get_token_ids=lambda text: [len(text)]).get_token_ids("abc") == [3]


async def test_sync_call_works_beside_a_running_loop_and_never_waits_for_itself() -> None:
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


def test_chunks_are_chunks() -> None:
    assert all(isinstance(chunk, AIMessageChunk) for chunk in model_of("a b c").stream("hi"))
