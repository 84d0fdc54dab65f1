"""Invalid tool calls are answered in agents of LangChain's and deepagents' own making."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

import mixquant_workflows
from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_workflows import InvalidToolCallsMiddleware

QUESTION = {"messages": [HumanMessage("How deep?")]}
BROKEN = ScriptedTurn(tool_calls=[{"name": "depth", "args": '{"lake": "In'}], parsed=True)
UNKNOWN = ScriptedTurn(tool_calls=[{"name": "deepness", "args": {"lake": "Inari"}}])
NAMELESS = ScriptedTurn(text='<tool_call>\n{"lake": "Inari"}\n</tool_call>')
GOOD = ScriptedTurn(tool_calls=[{"name": "depth", "args": {"lake": "Inari"}}])
MIXED = ScriptedTurn(
    tool_calls=[{"name": "depth", "args": "{"}, {"name": "depth", "args": {"lake": "Inari"}}], parsed=True
)


@tool
def depth(lake: str) -> str:
    """Depth of a lake."""
    return f"{lake}: 92 m"


def agent_on(make: Callable[..., Any], script: list[Any], **settings: Any) -> tuple[Any, ScriptedEngine]:
    engine = ScriptedEngine(script)
    middleware = [InvalidToolCallsMiddleware(**settings)]
    return make(MixQuantChatModel(engine=engine), [depth], middleware=middleware), engine


def answered(messages: list[AnyMessage]) -> bool:
    """Each call, valid or not, has one tool message behind it."""
    calls = [
        call["id"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in [*message.tool_calls, *message.invalid_tool_calls]
    ]
    return sorted(calls) == sorted(m.tool_call_id for m in messages if isinstance(m, ToolMessage))


@pytest.mark.parametrize("make", [create_agent, create_deep_agent])
@pytest.mark.parametrize(
    ("turn", "words"),
    [(BROKEN, "not valid JSON"), (UNKNOWN, "no tool 'deepness'; the tools are"), (NAMELESS, "no function name")],
)
async def test_agent_makes_an_invalid_call_again(make: Any, turn: ScriptedTurn, words: str) -> None:
    agent, engine = agent_on(make, [turn, GOOD, "92 m."])
    messages = (await agent.ainvoke(QUESTION))["messages"]
    assert messages[-1].text == "92 m."
    assert words in messages[2].text
    assert messages[2].status == "error"
    assert answered(messages)
    assert len(engine.requests) == 3


@pytest.mark.parametrize("make", [create_agent, create_deep_agent])
def test_agent_without_it_ends_with_an_empty_answer(make: Any) -> None:
    """Why there is one."""
    messages = make(MixQuantChatModel(engine=ScriptedEngine([BROKEN])), [depth]).invoke(QUESTION)["messages"]
    assert messages[-1].text == ""


@pytest.mark.parametrize("make", [create_agent, create_deep_agent])
def test_valid_calls_beside_an_invalid_one_run(make: Any) -> None:
    agent, engine = agent_on(make, [MIXED, "92 m."])
    messages = agent.invoke(QUESTION)["messages"]
    assert messages[-1].text == "92 m."
    assert sorted(m.status for m in messages if isinstance(m, ToolMessage)) == ["error", "success"]
    assert answered(messages)
    assert len(engine.requests) == 2


@pytest.mark.parametrize("retries", [0, 2])
def test_agent_ends_after_its_retries(retries: int) -> None:
    agent, engine = agent_on(create_agent, [BROKEN] * 9, max_retries=retries)
    messages = agent.invoke(QUESTION)["messages"]
    assert len(engine.requests) == retries + 1
    assert answered(messages)


def test_failures_are_counted_per_row_and_user_message() -> None:
    engine = ScriptedEngine([BROKEN, GOOD, BROKEN, "92 m.", BROKEN, "Yes."])
    agent = create_agent(MixQuantChatModel(engine=engine), [depth], middleware=[InvalidToolCallsMiddleware(1)])
    first = agent.invoke(QUESTION)
    assert first["messages"][-1].text == "92 m."
    second = agent.invoke({"messages": [*first["messages"], HumanMessage("Sure?")]})
    assert second["messages"][-1].text == "Yes."


async def test_reason_reaches_the_model_in_the_next_prompt() -> None:
    agent, engine = agent_on(create_agent, [NAMELESS, "Sorry."])
    await agent.ainvoke(QUESTION)
    roles = [(message["role"], message["content"]) for message in engine.requests[-1].messages]
    assert roles[1] == ("assistant", '{"lake": "Inari"}')
    assert roles[2][0] == "user", "a tool message would belong to a call, and there is none in the prompt"
    assert "no function name" in roles[2][1]


def test_negative_retries_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_retries=-1"):
        InvalidToolCallsMiddleware(-1)


def test_missing_langchain_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mixquant_workflows.graphs.middleware", None)  # what imports it fails
    monkeypatch.delitem(vars(mixquant_workflows), "InvalidToolCallsMiddleware", raising=False)  # loaded before
    with pytest.raises(MissingDependencyError, match=r"mixquant-agents\[langchain\]"):
        _ = mixquant_workflows.InvalidToolCallsMiddleware
