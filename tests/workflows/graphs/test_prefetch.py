"""The middleware by which an engine knows that a tool runs."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError
from mixquant_workflows import PrefetchMiddleware, growing_result
from mixquant_workflows.graphs.growing import ResultReader

LINES = [f"line {number} of a long result, with many words in it\n" for number in range(40)]


@tool
async def search(query: str) -> str:
    """Search."""
    told = ""
    for line in LINES:
        told += line
        growing_result(told)
        await asyncio.sleep(0.001)
    return told


@tool
def search_in_a_thread(query: str) -> str:
    """Search."""
    for end in range(0, len(LINES), 8):
        growing_result("".join(LINES[:end]))
        time.sleep(0.01)
    return "".join(LINES)


@pytest.mark.parametrize("searching", [search, search_in_a_thread], ids=lambda made: made.name)
async def test_result_is_read_as_it_grows(searching: Any) -> None:
    engine = ScriptedEngine([ScriptedTurn(tool_calls=[{"name": searching.name, "args": {"query": "q"}}]), "Done."])
    model = MixQuantChatModel(engine=engine)
    agent = create_agent(model, [searching], middleware=[PrefetchMiddleware(model, step=200)])
    result = await agent.ainvoke({"messages": [("human", "go")]}, {"configurable": {"thread_id": "T"}})
    turn = [m for m in result["messages"] if isinstance(m, AIMessage)][-1].response_metadata["turn"]
    assert turn["cached_tokens"] / turn["prompt_tokens"] > 0.5
    texts = [request.messages[-1]["content"] for request, _ in engine.prefetched]
    assert texts[0] == ""  # as soon as the call is known
    assert len(texts) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert list(engine.released) == ["T"]


def test_synchronous_agent_runs_as_without_it() -> None:
    turn = ScriptedTurn(tool_calls=[{"name": "search_in_a_thread", "args": {"query": "q"}}])
    model = MixQuantChatModel(engine=ScriptedEngine([turn, "Done."]))
    agent = create_agent(model, [search_in_a_thread], middleware=[PrefetchMiddleware(model)])
    result = agent.invoke({"messages": [("human", "go")]}, {"configurable": {"thread_id": "T"}})
    assert result["messages"][-1].content == "Done."
    assert list(model.engine.released) == ["T"]


async def test_failing_prefetch_fails_no_tool() -> None:
    async def failing(text: str) -> int:
        raise RuntimeError("no")

    reader = ResultReader(failing, 1)
    reader.tell("a")
    await asyncio.sleep(0.01)
    reader.tell("ab")
    await reader.close()


async def test_reading_ends_with_its_tool() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(text: str) -> int:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 0

    reader = ResultReader(endless, 1)
    reader.tell("a")
    await begun.wait()
    await reader.close()
    assert ended.is_set()


def test_step_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="step=0"):
        PrefetchMiddleware(MixQuantChatModel(engine=ScriptedEngine()), step=0)
