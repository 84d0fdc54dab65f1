"""Questions about a folder of text files, with citations that were checked."""

import asyncio
from pathlib import Path

from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel
from mixquant_tools.retrieval import DocumentIndex
from mixquant_workflows import retrieval_agent

FOLDER = Path(__file__).parents[1] / "docs"


async def main(
    model: MixQuantChatModel, folder: Path = FOLDER, question: str = "What may the quant package import?"
) -> dict:
    index = DocumentIndex.from_folder(folder)  # semantic=True adds MiniLM vectors
    # guided=True: the graph names the search tool on the first step, for models that cannot choose one.
    agent = retrieval_agent(model, index, guided=True, max_chars=2_000)
    state = await agent.ainvoke({"messages": [HumanMessage(question)]})
    print(state["messages"][-1].text)
    print("found in:", *(source["source"] for source in state["sources"]))
    print("cited:", state["citations"])
    return state


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=96)))
