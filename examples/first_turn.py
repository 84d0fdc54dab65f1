"""Ask once, and see what the turn cost: tokens and seconds, reading and writing apart."""

import asyncio

from mixquant_agents import MixQuantChatModel


async def main(model: MixQuantChatModel) -> dict:
    answer = await model.ainvoke("Why is the sky blue? Answer in one sentence.")
    turn = answer.response_metadata["turn"]
    print(answer.text)
    print(f"read {turn['quantized_tokens']} quantized and {turn['exact_tokens']} exact, wrote {turn['decode_tokens']}")
    print(f"first token after {turn['ttft_seconds']:.2f} s; policy {turn['policy']}, emulated: {turn['emulated']}")
    return turn


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", policy="mixquant-nvfp4", max_tokens=64)))
