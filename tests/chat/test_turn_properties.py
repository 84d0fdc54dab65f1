"""Relations that hold on every path a turn can take."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from mixquant_agents import MixQuantChatModel, ScriptedEngine, TurnRecord
from mixquant_agents.engine.scripted import ScriptedTurn

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
PARTS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "\n",
    '{"name": "f"',
    ', "arguments": ',
    '{"a": 1',
    "}",
    "}",
]
PARTS += ['{"name": "f", "arguments": {}}', "word", " ", "<", '"', "\\", "é"]
tokens = st.lists(st.sampled_from(PARTS), max_size=20)
turns = st.builds(
    ScriptedTurn,
    text=tokens,
    reasoning=st.sampled_from(["", "hm"]),
    tool_calls=st.lists(st.just({"name": "f", "args": {"a": 1}}), max_size=2),
    parsed=st.booleans(),
    fail_after=st.none() | st.integers(0, 12),
)


def comparable(message: AIMessage) -> list[Any]:
    """What was said, with ids by their place."""
    calls = [*message.tool_calls, *message.invalid_tool_calls]
    kept = message.additional_kwargs.get("unparsed_tool_calls", [])
    return [
        message.content,
        message.additional_kwargs.get("reasoning_content"),
        [(call["name"], call["args"]) for call in calls],
        [(one["text"], one["error"]) for one in kept],
        message.usage_metadata,
        message.response_metadata["finish_reason"],
    ]


@given(turns, st.none() | st.integers(1, 12))
def test_chunks_add_up_to_the_answer(turn: ScriptedTurn, limit: int | None) -> None:
    async def run() -> None:
        engine = ScriptedEngine(lambda _: turn)
        model = MixQuantChatModel(engine=engine, max_tokens=limit).bind_tools([TOOL])
        try:
            answer = await model.ainvoke("go")
        except Exception as error:
            answer = error
        pieces = []
        try:
            async for chunk in model.astream("go"):
                pieces.append(chunk)  # noqa: PERF401 - what came before a failure counts
        except Exception as failure:
            same = type(failure) is type(answer)
            assert same
            return
        added = pieces[0] + pieces[1:] if pieces[1:] else pieces[0]
        one_by_one = pieces[0]
        for piece in pieces[1:]:
            one_by_one = one_by_one + piece
        answers = [comparable(message) for message in (answer, added, one_by_one)]
        for said in answers:  # the second asking finds the prompt in the cache
            said[4] = {key: value for key, value in said[4].items() if key != "input_token_details"}
        assert answers[0] == answers[1] == answers[2]

    asyncio.run(run())


history = st.lists(st.sampled_from([HumanMessage("Tell me. " * 9), AIMessage("I tell you. " * 9)]), max_size=5)


@pytest.mark.slow
@given(
    st.lists(st.tuples(history, turns, st.none() | st.integers(1, 10)), min_size=1, max_size=3),
    st.sampled_from(["exact", "mixquant-nvfp4", "mixquant-fp8"]),
)
def test_records_are_one_a_turn_and_add_up(
    plan: list[tuple[list[BaseMessage], ScriptedTurn, int | None]], policy: str
) -> None:
    """Finished, failed or left in the middle: one record each, whose counters and times keep their relations."""
    records: list[TurnRecord] = []
    script = iter([turn for _, turn, _ in plan])
    engine = ScriptedEngine(lambda _: next(script), policy=policy)
    model = MixQuantChatModel(engine=engine, recorders=[records.append])

    async def run() -> list[str]:
        ends = []
        for past, _, leave_after in plan:
            seen, end = 0, "finished"
            stream = model.astream([*past, HumanMessage("Go on.")])
            try:
                async for chunk in stream:
                    seen += 1
                    if seen == leave_after and chunk.chunk_position != "last":
                        end = "left"
                        break
            except Exception:
                end = "failed"
            await stream.aclose()
            ends.append(end)
        await model.aclose()
        return ends

    ends = asyncio.run(run())
    assert engine.running == 0
    assert len(records) == len(plan)
    for record, end, (past, _, _) in zip(records, ends, plan, strict=True):
        again = TurnRecord(**record.model_dump(mode="json"))  # checks every relation, and that it is plain JSON
        assert again == record
        assert record.turn_index == sum(isinstance(message, AIMessage) for message in past)
        assert (record.aborted, record.error is not None) == (end == "left", end == "failed")
        if end == "finished":
            assert record.prompt_tokens == record.cached_tokens + record.quantized_tokens + record.exact_tokens
            assert record.total_seconds >= (record.ttft_seconds or 0) + (record.decode_seconds or 0) - 1e-6
            assert record.finish_reason in ("stop", "tool_calls")
        else:
            assert (record.quantized_tokens, record.exact_tokens) == (None, None)
            if record.prompt_tokens is not None:  # known from the first token on
                assert record.prompt_tokens == (record.cached_tokens or 0) + (record.prefill_tokens or 0)
            assert record.timing_source == "client"
