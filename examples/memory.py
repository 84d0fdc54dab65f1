"""A dialogue that goes on tomorrow: state and notes in SQLite files, old talk summarised when the context fills."""

import asyncio
from pathlib import Path

from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel
from mixquant_tools.retrieval import NoteBook
from mixquant_workflows import SqliteCheckpoints, memory_agent


async def main(model: MixQuantChatModel, folder: Path = Path()) -> str:
    notes = NoteBook(folder / "notes.db")
    agent = memory_agent(model, notes, max_tokens=1_500, checkpointer=SqliteCheckpoints(folder / "dialogue.db"))
    config = {"configurable": {"thread_id": "ann"}}
    text = ""
    for said in ("My name is Ann and I live in Oslo.", "I have a dog.", "Where do I live?"):
        state = await agent.ainvoke({"messages": [HumanMessage(said)]}, config)
        text = state["messages"][-1].text
        print(f"> {said}\n{text}")
    return text


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=64)))
