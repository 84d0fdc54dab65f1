"""An agent with a tool of your own and one of ours."""

import asyncio

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel
from mixquant_tools.calculator import calculator_tool
from mixquant_workflows import tool_agent


@tool
def price_of(item: str) -> str:
    """The price of an item in euros."""
    return {"hammer": "19", "saw": "27"}.get(item.lower(), "unknown item")


async def main(model: MixQuantChatModel) -> str:
    agent = tool_agent(model, [price_of, calculator_tool()], max_steps=6)
    state = await agent.ainvoke({"messages": [HumanMessage("What is the price of a saw?")]})
    for message in state["messages"]:
        message.pretty_print()
    return state["messages"][-1].text


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=128)))
