"""The middleware by which an engine knows that a tool runs."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

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


@tool
async def broken(query: str) -> str:
    """Search."""
    raise ValueError(query)


@tool
async def asking(query: str) -> str:
    """Ask."""
    return str(interrupt(query))


@pytest.mark.parametrize("searching", [broken, asking], ids=lambda made: made.name)
async def test_thread_is_let_go_where_a_tool_ends_its_run_and_kept_where_it_asks(searching: Any) -> None:
    engine = ScriptedEngine([ScriptedTurn(tool_calls=[{"name": searching.name, "args": {"query": "q"}}]), "Done."])
    model = MixQuantChatModel(engine=engine, keep_seconds=60)
    agent = create_agent(model, [searching], middleware=[PrefetchMiddleware(model)], checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "T"}}
    if searching is broken:
        with pytest.raises(ValueError, match="q"):
            await agent.ainvoke({"messages": [("human", "go")]}, config)
        assert list(engine.released) == ["T"]
        return
    await agent.ainvoke({"messages": [("human", "go")]}, config)
    assert not engine.released
    result = await agent.ainvoke(Command(resume="yes"), config)
    assert result["messages"][-1].content == "Done."
    assert list(engine.released) == ["T"]


async def test_agent_inside_an_agents_tool_lets_the_outer_thread_alone() -> None:
    released: list[list[str]] = []
    engine = ScriptedEngine(
        [
            ScriptedTurn(tool_calls=[{"name": "helper", "args": {"query": "q"}}]),
            ScriptedTurn(tool_calls=[{"name": "search", "args": {"query": "q"}}]),
            "Found.",
            "Done.",
        ]
    )
    model = MixQuantChatModel(engine=engine, keep_seconds=60)
    inner = create_agent(model, [search], middleware=[PrefetchMiddleware(model)])

    @tool
    async def helper(query: str) -> str:
        """Ask a helper."""
        result = await inner.ainvoke({"messages": [("human", query)]})
        released.append(list(engine.released))
        return str(result["messages"][-1].content)

    agent = create_agent(model, [helper], middleware=[PrefetchMiddleware(model)])
    result = await agent.ainvoke({"messages": [("human", "go")]}, {"configurable": {"thread_id": "T"}})
    assert result["messages"][-1].content == "Done."
    assert released == [[]]
    assert list(engine.released) == ["T"]


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
