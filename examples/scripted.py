"""Test a graph of your own in milliseconds: the scripted engine plays the model, calls and failures included."""

import asyncio

from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_tools.calculator import calculator_tool
from mixquant_workflows import tool_agent


async def main() -> str:
    script = [
        ScriptedTurn(tool_calls=[{"name": "calculator", "args": {"expression": "37*43"}}]),
        "37 times 43 is 1591.",
    ]
    engine = ScriptedEngine(script)
    agent = tool_agent(MixQuantChatModel(engine=engine), [calculator_tool()])
    state = await agent.ainvoke({"messages": [HumanMessage("What is 37 times 43?")]})
    assert state["messages"][-2].text == "1591"  # noqa: S101 - the tool's own answer, in a test
    assert engine.running == 0  # noqa: S101 - nothing leaks
    print(state["messages"][-1].text)
    return state["messages"][-1].text


if __name__ == "__main__":
    asyncio.run(main())
