"""The model reads a tool's result while the tool works on the rest; the thread's prefix is held meanwhile."""

import asyncio

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel
from mixquant_workflows import PrefetchMiddleware, growing_result

SYSTEM = "You answer from what the log says."


@tool
async def read_log(day: str) -> str:
    """Read the log of a day."""
    lines = ""
    for hour in range(24):
        lines += f"{day} {hour:02}:00 the pump ran, the level was {100 - hour} cm, and nobody was there\n"
        growing_result(lines)
        await asyncio.sleep(0.01)
    return lines


async def main(model: MixQuantChatModel) -> str:
    await model.awarm(SYSTEM, [read_log])
    agent = create_agent(model, [read_log], system_prompt=SYSTEM, middleware=[PrefetchMiddleware(model, step=500)])
    config = {"configurable": {"thread_id": "log", "priority": -1}}
    state = await agent.ainvoke({"messages": [("human", "How high was the water at noon on Monday?")]}, config)
    for message in state["messages"]:
        if isinstance(message, AIMessage):
            turn = message.response_metadata["turn"]
            print(f"read ahead: {turn['warmed_tokens']}, cached: {turn['cached_tokens']} of {turn['prompt_tokens']}")
    return str(state["messages"][-1].text)


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=96, keep_seconds=60)))
