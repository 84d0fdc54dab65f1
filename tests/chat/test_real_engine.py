"""The chat model on the real engine: cancellation frees what it held, and a whole agent's turn is counted."""

import asyncio
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel, TurnRecord, VllmEngine
from mixquant_agents.errors import ContextOverflowError

pytestmark = pytest.mark.engine


@tool
def search(query: str) -> str:
    """Search the documents."""
    return f"Nothing about {query}."


async def idle(engine: VllmEngine) -> Any:
    """The scheduler's state once nothing runs; at most ten seconds."""
    for _ in range(200):
        stats = await engine.stats()
        if not (stats.running or stats.waiting or stats.unfinished):
            return stats
        await asyncio.sleep(0.05)
    return stats


async def test_streams_of_which_half_are_cancelled(engine: VllmEngine) -> None:
    records: list[TurnRecord] = []
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=24, ignore_eos=True, recorders=[records.append])
    before = asyncio.all_tasks()

    async def read(place: int) -> int:
        seen = 0
        async for chunk in model.astream(f"Count from {place} on."):
            seen += bool(chunk.content)
            if place % 2 and seen == 1 + place // 4:
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
        return seen

    results = await asyncio.gather(*(read(place) for place in range(16)), return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [False, True] * 8
    stats = await idle(engine)
    assert (stats.running, stats.waiting, stats.unfinished, stats.kv_cache_usage) == (0, 0, 0, 0)
    assert asyncio.all_tasks() <= before
    await model.aclose()
    assert sorted(record.aborted for record in records) == [False] * 8 + [True] * 8
    for record in records:
        if not record.aborted:
            assert record.decode_tokens == 24
            assert record.prefill_tokens == record.quantized_tokens + record.exact_tokens
            assert record.timing_source == "engine"


async def test_agent_s_turns(engine: VllmEngine) -> None:
    """A forced call with valid arguments, its result, an answer: the second prompt finds the first in the cache."""
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
    question = HumanMessage("Search the documents for the policy presets. " * 3)
    asked = await model.bind_tools([search], tool_choice="search").ainvoke([question])
    (call,) = asked.tool_calls
    assert call["name"] == "search"
    assert isinstance(call["args"]["query"], str)
    assert asked.invalid_tool_calls == []
    result = await search.ainvoke(call)
    answered = await model.bind_tools([search], tool_choice="none").ainvoke([question, asked, result])
    assert answered.content
    first, second = (TurnRecord(**message.response_metadata["turn"]) for message in (asked, answered))
    assert (first.turn_index, second.turn_index) == (0, 1)
    assert first.tool_calls == ("search",)
    assert second.prompt_tokens > first.prompt_tokens
    assert second.cached_tokens >= 128 * (first.prompt_tokens // 128) > 0  # KV blocks on the CPU hold 128 tokens
    assert answered.usage_metadata["input_token_details"]["cache_read"] == second.cached_tokens


async def test_engine_is_shared_by_sync_callers_and_other_loops(engine: VllmEngine) -> None:
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=6)
    here = await model.ainvoke("Say yes.")
    there = await asyncio.to_thread(model.invoke, "Say yes.")
    fresh = await asyncio.to_thread(lambda: asyncio.run(model.ainvoke("Say yes.")))
    streamed = await asyncio.to_thread(lambda: "".join(str(chunk.content) for chunk in model.stream("Say yes.")))
    assert here.content == there.content == fresh.content == streamed


async def test_tools_with_choice_none_are_seen_and_not_called(engine: VllmEngine) -> None:
    """The same prompt, so the same cache; where this model would call, it must find words."""
    question = "Search the documents for the policy presets. " * 3
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=32)
    called = await model.bind_tools([search]).ainvoke(question)
    told = await model.bind_tools([search], tool_choice="none").ainvoke(question)
    assert [call["name"] for call in called.tool_calls] == ["search"]
    assert (told.tool_calls, told.invalid_tool_calls) == ([], [])
    assert told.text[0].isalnum()
    assert "tool_call" not in told.text
    assert told.usage_metadata["input_tokens"] == called.usage_metadata["input_tokens"]
    assert told.usage_metadata["input_token_details"]["cache_read"] >= 128


async def test_json_mode_is_a_grammar(engine: VllmEngine) -> None:
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
    free = await model.bind(response_format={"type": "json_object"}).ainvoke("Name a colour.")
    assert free.text.startswith("{")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    chain = model.with_structured_output({**schema, "additionalProperties": False}, method="json_mode")
    assert set(await chain.ainvoke("Is water wet?")) == {"ok"}


async def test_text_of_any_kind_keeps_a_thread_going(engine: VllmEngine) -> None:
    """Half of a surrogate pair, controls, unassigned and private characters: in every kind of message."""
    odd = "cut \ud83d, turned \ude00\ud83d, \x00\x07\x1b[31m\u202e\u0378\ue000\U0010ffff\ufeff"
    call = {"name": "search", "args": {odd: odd}, "id": "call 1"}
    history = [
        SystemMessage(odd),
        HumanMessage(odd),
        AIMessage(odd, tool_calls=[call], additional_kwargs={"reasoning_content": odd}),
        ToolMessage(odd, tool_call_id="call 1", name="search"),
        HumanMessage([{"type": "text", "text": odd}, odd]),
    ]
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=4)
    for asked in (model, model.bind_tools([search])):
        answer = await asked.ainvoke(history)
        assert answer.usage_metadata["output_tokens"] > 0
        answer.content.encode()
        assert (await asked.ainvoke([*history, answer, HumanMessage("go on")])).usage_metadata["output_tokens"] > 0
    assert await model.aget_num_tokens_from_messages(history) > 0


async def test_window_told_before_the_start_is_the_engine_s(engine: VllmEngine) -> None:
    before = MixQuantChatModel(engine=VllmEngine(engine.config)).profile["max_input_tokens"]
    await engine.start()
    assert before == engine.info.max_model_len
    text = "word " * (before + 1)
    with pytest.raises(exceptions.ContextOverflowError) as caught:
        await MixQuantChatModel(engine=engine).ainvoke(text)
    assert isinstance(caught.value, ContextOverflowError)
