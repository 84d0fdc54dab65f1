"""LangChain's and LangGraph's own agents run on the chat model."""

from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn


class Sum(BaseModel):
    """The sum."""

    total: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


CALL = ScriptedTurn(text="I add.", tool_calls=[{"name": "add", "args": {"a": 3, "b": 4}}])


def said(result: dict[str, Any]) -> list[str]:
    return [message.type for message in result["messages"]]


async def test_tool_agent_with_a_checkpointer() -> None:
    engine = ScriptedEngine([CALL, "It is 7.", "You asked for a sum."])
    agent = create_agent(
        MixQuantChatModel(engine=engine), [add], system_prompt="Be brief.", checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "T"}}
    first = await agent.ainvoke({"messages": [("human", "3 + 4?")]}, config)
    assert said(first) == ["human", "ai", "tool", "ai"]
    assert first["messages"][2].content == "7"
    second = await agent.ainvoke({"messages": [("human", "What did I ask?")]}, config)
    turns = [m.response_metadata["turn"] for m in second["messages"] if isinstance(m, AIMessage)]
    assert [turn["turn_index"] for turn in turns] == [0, 1, 2]
    assert {turn["thread_id"] for turn in turns} == {"T"}
    assert turns[0]["cached_tokens"] < turns[1]["cached_tokens"] < turns[2]["cached_tokens"]
    assert engine.requests[-1].messages[0] == {"role": "system", "content": "Be brief."}


async def test_parallel_calls_run_and_an_invalid_one_does_not() -> None:
    ran: list[int] = []

    def note(x: int) -> str:
        """Note."""
        ran.append(x)
        return "noted"

    calls = [
        {"name": "note", "args": {"x": 1}},
        {"name": "note", "args": '{"x": 2, "y'},
        {"name": "note", "args": {"x": 3}},
    ]
    turn = ScriptedTurn(tool_calls=calls, parsed=True)
    agent = create_agent(MixQuantChatModel(engine=ScriptedEngine([turn, "Done."])), [note])
    result = await agent.ainvoke({"messages": [("human", "go")]})
    assert sorted(ran) == [1, 3]
    told = {message.status for message in result["messages"] if isinstance(message, ToolMessage)}
    assert told == {"success", "error"}, "the agent tells the model that its second call was none"


async def test_structured_answer_as_a_tool() -> None:
    final = ScriptedTurn(tool_calls=[{"name": "Sum", "args": {"total": 7}}])
    engine = ScriptedEngine([CALL, final])
    agent = create_agent(MixQuantChatModel(engine=engine), [add], response_format=ToolStrategy(Sum))
    result = await agent.ainvoke({"messages": [("human", "3 + 4?")]})
    assert result["structured_response"] == Sum(total=7)
    assert engine.requests[0].tool_choice == "required"


async def test_structured_answers_by_grammar_without_tools() -> None:
    def script(request: EngineRequest) -> str:
        return '{"total": 7}' if request.schema is not None else "no schema"

    model = MixQuantChatModel(engine=ScriptedEngine(script))
    agent = create_agent(model, [], response_format=ProviderStrategy(Sum))
    assert (await agent.ainvoke({"messages": [("human", "3 + 4?")]}))["structured_response"] == Sum(total=7)


async def test_tokens_and_calls_stream_out_of_an_agent() -> None:
    engine = ScriptedEngine([CALL, ScriptedTurn(text=["It ", "is ", "7."])])
    agent = create_agent(MixQuantChatModel(engine=engine), [add])
    texts, names = [], []
    async for chunk, _ in agent.astream({"messages": [("human", "3 + 4?")]}, stream_mode="messages"):
        if chunk.type == "AIMessageChunk":
            texts += [chunk.content] * bool(chunk.content)
            names += [piece["name"] for piece in chunk.tool_call_chunks if piece["name"]]
    assert texts[-3:] == ["It ", "is ", "7."]
    assert names == ["add"]


@pytest.mark.parametrize("strategy", [Sum, ProviderStrategy(Sum)], ids=["by itself", "by grammar"])
async def test_structured_answers_by_grammar_beside_tools(strategy: Any) -> None:
    engine = ScriptedEngine([CALL, '{"total": 7}'])
    agent = create_agent(MixQuantChatModel(engine=engine), [add], response_format=strategy)
    result = await agent.ainvoke({"messages": [("human", "3 + 4?")]})
    assert result["structured_response"] == Sum(total=7)
    assert [request.tool_choice for request in engine.requests] == ["auto", "auto"]
    assert all(request.schema is not None for request in engine.requests)


async def test_structured_answer_beside_tools_is_checked_against_all_of_its_schema() -> None:
    schema = {
        "title": "Sums",
        "type": "object",
        "properties": {"totals": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
        "required": ["totals"],
    }
    model = MixQuantChatModel(engine=ScriptedEngine([CALL, '{"totals": [7, 7]}']))
    agent = create_agent(model, [add], response_format=schema)
    with pytest.raises(OutputParserException, match="breaks its schema"):
        await agent.ainvoke({"messages": [("human", "3 + 4?")]})


async def test_deep_agent_answers_by_a_schema_without_a_turn_for_it() -> None:
    engine = ScriptedEngine([CALL, '{"total": 7}'])
    agent = create_deep_agent(MixQuantChatModel(engine=engine), [add], response_format=Sum)
    result = await agent.ainvoke({"messages": [("human", "3 + 4?")]})
    assert result["structured_response"] == Sum(total=7)
    assert said(result) == ["human", "ai", "tool", "ai"]
    assert all(request.schema is not None and request.tool_choice == "auto" for request in engine.requests)
    assert not any(tool["function"]["name"] == "Sum" for request in engine.requests for tool in request.tools)
