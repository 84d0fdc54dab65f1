"""An engine of your own: a class with ``info`` and ``stream``, registered by nothing. This one has a fallback."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.errors import EngineDeadError, EngineError


class FallbackEngine(Engine):
    """Answers by the first engine; where that fails before its first word, by the second."""

    def __init__(self, first: Engine, second: Engine) -> None:
        self.first, self.second = first, second

    @property
    def info(self) -> EngineInfo:
        name = f"{self.first.info.engine}-or-{self.second.info.engine}"
        return EngineInfo(engine=name, model=self.first.info.model, max_model_len=self.second.info.max_model_len)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        for engine in (self.first, self.second):
            begun = False
            try:
                async with aclosing(engine.stream(request)) as answer:
                    async for delta in answer:
                        begun = True
                        yield delta
                return
            except EngineError:
                if begun or engine is self.second:
                    raise

    async def aclose(self) -> None:
        await self.first.aclose()
        await self.second.aclose()


async def main() -> str:
    broken, sound = ScriptedEngine([EngineDeadError("out of memory")]), ScriptedEngine(["Here I am."])
    async with FallbackEngine(broken, sound) as engine:
        answer = await MixQuantChatModel(engine=engine).ainvoke("Is anybody there?")
    print(answer.text, "from", answer.response_metadata["turn"]["engine"])
    return answer.text


if __name__ == "__main__":
    asyncio.run(main())
