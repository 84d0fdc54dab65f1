"""An engine in a process of its own: what it says arrives, what goes wrong there is an error here."""

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Sequence

import pytest

from mixquant_agents.bench.own_process import OwnProcessEngine
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest, Sampling
from mixquant_agents.errors import EngineDeadError, EngineError

pytestmark = pytest.mark.slow


class Counting(Engine):
    """Writes the numbers up to ``max_tokens``; 13 of them is more than it can, and with 666 its process dies."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine=self._name, model=os.environ.get("MODEL_OF_TEST", ""), token_ids=True)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        tokens = request.sampling.max_tokens or 0
        if tokens == 13:
            raise ValueError("thirteen")
        if tokens == 666:
            os._exit(1)
        for number in range(tokens):
            await asyncio.sleep(0)
            yield Delta(token_ids=(number,))

    async def render(self, request: EngineRequest) -> Sequence[int]:
        return [len(message["content"]) for message in request.messages]


async def _written(engine: Engine, tokens: int) -> list[int]:
    request = EngineRequest(request_id=str(tokens), messages=(), sampling=Sampling(max_tokens=tokens))
    return [token async for delta in engine.stream(request) for token in delta.token_ids]


async def test_turns_errors_and_death_of_the_process_arrive() -> None:
    engine = OwnProcessEngine(functools.partial(Counting, "counts"), {"MODEL_OF_TEST": "there"})
    try:
        await engine.start()
        assert (engine.info.engine, engine.info.model) == ("counts", "there"), "its environment is its own"
        assert "MODEL_OF_TEST" not in os.environ
        both = await asyncio.gather(_written(engine, 50), _written(engine, 60))
        assert both == [list(range(50)), list(range(60))]
        assert await engine.render(EngineRequest(request_id="r", messages=[{"content": "four"}])) == [4]
        assert await engine.run(_written, 3) == [0, 1, 2], "there, without the pipe between"
        with pytest.raises(EngineError, match="ValueError: thirteen"):
            await _written(engine, 13)
        with pytest.raises(EngineDeadError):
            await asyncio.gather(_written(engine, 1_000_000), _written(engine, 666))
        with pytest.raises(EngineDeadError):
            await _written(engine, 1)
    finally:
        await engine.aclose()
