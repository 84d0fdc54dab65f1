"""An answer in the form of a pydantic class; the grammar leaves the model no other way."""

import asyncio

from pydantic import BaseModel, Field

from mixquant_agents import MixQuantChatModel


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)
    country: str = Field(max_length=40)


async def main(model: MixQuantChatModel) -> City:
    city = await model.with_structured_output(City).ainvoke("Name the capital of France as JSON with name and country.")
    print(city)
    return city


if __name__ == "__main__":
    asyncio.run(main(MixQuantChatModel(model="embedded", temperature=0, max_tokens=128)))
