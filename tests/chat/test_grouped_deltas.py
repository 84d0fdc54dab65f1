"""However many tokens an engine gives out at once, the answer is the same: busy engines give several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from chat_doubles import CALLS, FULL, add, weather
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import Delta, EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_workflows import tool_agent

TURNS = {
    "call": ScriptedTurn(tool_calls=CALLS[:1]),
    "calls": ScriptedTurn(tool_calls=CALLS),
    "all": FULL,
    "cut off": ScriptedTurn(tool_calls=[{"name": "add", "args": '{"a": 3, "b'}], parsed=True),
    "empty": ScriptedTurn(tool_calls=[{"name": "add", "args": ""}], parsed=True),
}


class Grouped(ScriptedEngine):
    """Gives out several deltas as one."""

    def __init__(self, turn: ScriptedTurn, sizes: Sequence[int]) -> None:
        super().__init__([turn, "Done."], cycle=True)
        self._sizes = list(sizes)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """As the script says, in groups."""
        sizes, held = iter(self._sizes), list[Delta]()
        size = next(sizes, 1_000)
        async for delta in super().stream(request):
            held.append(delta)
            if len(held) >= size or delta.finish_reason is not None:
                yield joined(held)
                held, size = [], next(sizes, 1_000)


def joined(deltas: Sequence[Delta]) -> Delta:
    last = deltas[-1]
    return replace(
        last,
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        tool_calls=tuple(piece for delta in deltas for piece in delta.tool_calls),
        invalid_calls=tuple(call for delta in deltas for call in delta.invalid_calls),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
    )


def said(message: AIMessage) -> tuple[Any, ...]:
    calls = [(call["name"], call["args"], isinstance(call["id"], str)) for call in message.tool_calls]
    broken = [(call["name"], isinstance(call["id"], str)) for call in message.invalid_tool_calls]
    return message.content, message.additional_kwargs.get("reasoning_content"), calls, broken


async def answers(turn: ScriptedTurn, sizes: Sequence[int]) -> list[tuple[Any, ...]]:
    bound = MixQuantChatModel(engine=Grouped(turn, sizes)).bind_tools([add, weather])
    invoked = await bound.ainvoke("go")
    bound = MixQuantChatModel(engine=Grouped(turn, sizes)).bind_tools([add, weather])
    whole: Any = None
    async for chunk in bound.astream("go"):
        whole = chunk if whole is None else whole + chunk
    return [said(invoked), said(whole)]


@settings(max_examples=25)
@given(st.sampled_from(sorted(TURNS)), st.lists(st.integers(1, 40), max_size=6))
def test_answer_does_not_depend_on_the_grouping(name: str, sizes: list[int]) -> None:
    async def compared() -> None:
        expected = await answers(TURNS[name], [1] * 1_000)
        assert await answers(TURNS[name], sizes) == expected
        assert all(has_id for *_, calls, broken in expected for *_, has_id in (*calls, *broken))

    asyncio.run(compared())


@pytest.mark.parametrize("size", [1, 3, 1_000])
async def test_agent_runs_a_call_that_came_at_once(size: int) -> None:
    model = MixQuantChatModel(engine=Grouped(TURNS["call"], [size] * 1_000))
    state = await tool_agent(model, [add]).ainvoke({"messages": [("human", "3 + 4?")]})
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].content == "7"
