"""Stop in the middle, go on later: the state lies in an SQLite file, and nothing runs twice."""

import asyncio
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel
from mixquant_workflows import tool_agent

STEPS: list[int] = []


@tool
def do_step(number: int) -> str:
    """Do one step of the work."""
    STEPS.append(number)
    return f"step {number} is done"


async def main(model: MixQuantChatModel, folder: Path = Path()) -> list[int]:
    agent = tool_agent(model, [do_step], checkpointer=folder / "state.db")
    config = {"configurable": {"thread_id": "work"}}
    question = {"messages": [HumanMessage("Do step 1.")]}
    await agent.ainvoke(question, config, interrupt_after=["tools"], durability="sync")  # as if killed here
    print("stopped after", STEPS)
    state = await agent.ainvoke(None, config)  # None: no new message, go on
    print(state["messages"][-1].text)
    return STEPS


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=96)))
