"""Show the answer while it is written; leaving the loop early stops the engine."""

import asyncio

from mixquant_agents import MixQuantChatModel


async def main(model: MixQuantChatModel, most_words: int = 40) -> str:
    said = ""
    stream = model.astream("Tell me about the sea.")
    async for chunk in stream:
        print(chunk.text, end="", flush=True)
        said += chunk.text
        if len(said.split()) >= most_words:
            break
    await stream.aclose()  # aborts the turn in the engine
    print()
    return said


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", max_tokens=200)))
