"""What a whole task cost, turn by turn: how much of each prompt came from the cache, was quantized, was exact."""

import asyncio

from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel, TurnRecord
from mixquant_tools.clock import unit_tool
from mixquant_workflows import tool_agent


async def main(model: MixQuantChatModel, records: list[TurnRecord]) -> list[TurnRecord]:
    agent = tool_agent(model, [unit_tool()], max_steps=4)
    await agent.ainvoke({"messages": [HumanMessage("Convert 5 miles to km.")]}, {"configurable": {"thread_id": "a"}})
    for record in records:
        print(
            f"turn {record.turn_index}: {record.cached_tokens} cached + {record.quantized_tokens} quantized "
            f"+ {record.exact_tokens} exact, {record.decode_tokens} written, calls {list(record.tool_calls)}"
        )
    return records


if __name__ == "__main__":
    kept: list[TurnRecord] = []
    chat = MixQuantChatModel(
        model="embedded", policy="mixquant-nvfp4", temperature=0, max_tokens=96, recorders=[kept.append]
    )
    asyncio.run(main(chat, kept))
