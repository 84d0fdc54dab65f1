"""Many agents at once share one engine: it batches their turns."""

import asyncio
import time

from mixquant_agents import MixQuantChatModel

QUESTIONS = ("What is a horse?", "What is a ship?", "What is a violin?", "What is rain?")


async def main(model: MixQuantChatModel) -> list[str]:
    began = time.monotonic()
    answers = await asyncio.gather(*(model.ainvoke(question) for question in QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"> {question}\n{answer.text}")
    tokens = sum(answer.usage_metadata["output_tokens"] for answer in answers)
    print(f"{tokens} tokens in {time.monotonic() - began:.1f} s")
    return [answer.text for answer in answers]


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", max_tokens=48)))
