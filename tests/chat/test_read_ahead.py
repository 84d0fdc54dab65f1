"""Warm-up, prefetch, kept prefixes and priorities, as the chat model asks an engine for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda

from mixquant_agents import MixQuantChatModel, OpenAIEngine, ScriptedEngine
from mixquant_agents.chat.open_calls import OpenCalls
from mixquant_agents.engine.base import EngineRequest, Keep, Sleep
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError, RequestError
from tests.chat.chat_doubles import add

CALL = ScriptedTurn(tool_calls=[{"name": "add", "args": {"a": 3, "b": 4}}])
SYSTEM = "You add numbers, one after the other, and you never guess what you could compute. " * 3


def cached(answer: Any) -> tuple[int, int]:
    turn = answer.response_metadata["turn"]
    return turn["cached_tokens"], turn["prompt_tokens"]


async def test_warm_model_has_read_system_prompt_and_tools() -> None:
    engine = ScriptedEngine(["7", "7"])
    model = MixQuantChatModel(engine=engine)
    warmed = await model.awarm(SYSTEM, [add])
    answer = await model.bind_tools([add]).ainvoke([SystemMessage(SYSTEM), HumanMessage("3 + 4?")])
    found, prompt = cached(answer)
    assert found == warmed > prompt // 2
    request, growing = engine.prefetched[-1]
    assert (request.priority, growing) == (2**20, False)
    assert await MixQuantChatModel(engine=OpenAIEngine("m", base_url="http://127.0.0.1:9/v1")).awarm(SYSTEM) == 0


async def test_warm_takes_a_system_prompt_as_agents_do() -> None:
    model = MixQuantChatModel(engine=ScriptedEngine())
    assert await model.awarm(SystemMessage(SYSTEM), [add]) == await model.awarm(SYSTEM, [add]) > 0
    for wrong in (5, None, [SystemMessage(SYSTEM)], HumanMessage(SYSTEM)):
        with pytest.raises(RequestError, match="is no system prompt; give a text or a SystemMessage"):
            await model.awarm(wrong)  # type: ignore[arg-type]  # what callers may give all the same


def test_warm_works_without_an_event_loop() -> None:
    assert MixQuantChatModel(engine=ScriptedEngine()).warm(SYSTEM) > 0


async def test_result_is_read_while_its_tool_runs() -> None:
    engine = ScriptedEngine([CALL, "7"])
    model = MixQuantChatModel(engine=engine)
    bound = model.bind_tools([add])
    question = HumanMessage("3 + 4?")
    asked = await bound.ainvoke([question])
    (call,) = asked.tool_calls
    long = "line of the result " * 100
    assert await model.aprefetch_result(call["id"], long) > 0
    answer = await bound.ainvoke([question, asked, ToolMessage(long + "end", tool_call_id=call["id"])])
    found, prompt = cached(answer)
    assert found / prompt > 0.9
    assert engine.prefetched[-1][1] is True
    assert await model.aprefetch_result("unknown", long) == 0


async def test_calls_of_two_threads_with_one_id_are_told_apart() -> None:
    """Some models number their calls: the first one of every conversation has the same id."""
    numbered = ScriptedTurn(
        tool_calls=[{"name": "add", "args": {"a": 3, "b": 4}, "id": "functions.add:0"}], parsed=True
    )
    engine = ScriptedEngine([numbered, numbered])
    model = MixQuantChatModel(engine=engine)
    bound = model.bind_tools([add])
    for thread in "ST":
        await bound.ainvoke(
            [SystemMessage(SYSTEM), HumanMessage(f"question of {thread}")], {"configurable": {"thread_id": thread}}
        )

    async def read_ahead(_: object) -> int:
        return await model.aprefetch_result("functions.add:0", "7")

    assert await RunnableLambda(read_ahead).ainvoke(0, {"configurable": {"thread_id": "S"}}) > 0
    assert engine.prefetched[-1][0].messages[1]["content"] == "question of S"
    assert await model.aprefetch_result("functions.add:0", "7") == 0  # whose it is, is not known


def test_first_calls_of_the_latest_answers_are_known() -> None:
    calls = OpenCalls()
    for number in range(300):
        made = [{"id": f"{number}-{index}", "function": {}} for index in range(2)]
        calls.note(EngineRequest(request_id="r", messages=[]), {"role": "assistant", "tool_calls": made})
    assert len(calls) == 256
    assert calls.request("299-1", "") is None
    assert calls.request("0-0", "") is None
    known = calls.request("299-0", "half \ud83d")
    assert known is not None
    assert known.messages[-1] == {"role": "tool", "content": "half \ufffd", "tool_call_id": "299-0"}


async def test_kept_threads_are_named_to_the_engine() -> None:
    engine = ScriptedEngine(["a", "b"])
    model = MixQuantChatModel(engine=engine, keep_seconds=30, keep_tokens=4096)
    await model.ainvoke("hi", {"configurable": {"thread_id": "T"}})
    assert engine.requests[-1].keep == Keep(seconds=30, tokens=4096)
    assert engine.requests[-1].thread_id == "T"
    await MixQuantChatModel(engine=engine).ainvoke("hi")
    assert engine.requests[-1].keep is None
    await model.arelease("T")
    assert list(engine.released) == ["T"]


async def test_model_sleeps_and_wakes_by_its_engine() -> None:
    class Sleeper(ScriptedEngine):
        def __init__(self) -> None:
            super().__init__(["a"], cycle=True)
            self.woken = 0

        async def sleep(self) -> Sleep:
            return Sleep(way="host", seconds=1.0, freed_bytes=5)

        async def wake(self) -> None:
            self.woken += 1

    engine = Sleeper()
    model = MixQuantChatModel(engine=engine)
    assert (await model.asleep()).freed_bytes == 5
    await model.awake()
    assert (await asyncio.to_thread(model.sleep)).way == "host"
    await asyncio.to_thread(model.wake)
    assert engine.woken == 2
    with pytest.raises(ConfigError, match="no memory here"):
        await MixQuantChatModel(engine=OpenAIEngine("m", base_url="http://127.0.0.1:9/v1")).asleep()


async def test_priority_comes_from_the_runs_config() -> None:
    engine = ScriptedEngine(["a"], cycle=True)
    model = MixQuantChatModel(engine=engine)
    config: Any = {"configurable": {"priority": -5}}
    await model.ainvoke("hi", config)
    assert engine.requests[-1].priority == -5

    async def node(text: str) -> AIMessage:
        return await model.ainvoke(text)

    await RunnableLambda(node).ainvoke("hi", {"configurable": {"priority": 7}})
    assert engine.requests[-1].priority == 7
    await model.bind(priority=1).ainvoke("hi", config)
    assert engine.requests[-1].priority == 1
    async for _ in model.astream("hi", config):
        pass
    assert engine.requests[-1].priority == -5
    with pytest.raises(RequestError, match="priority"):
        await model.ainvoke("hi", {"configurable": {"priority": "high"}})
