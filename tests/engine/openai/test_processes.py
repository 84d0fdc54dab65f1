"""One engine in many processes and loops: forked and spawned workers, actors, and threads with loops of their own."""

import asyncio
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import pytest
from openai_double import Server, piece, usage

from mixquant_agents import MixQuantChatModel, OpenAIEngine, PairEngine

HELLO = [piece(content="Hello"), piece(finish="stop"), usage(1, 1)]


async def _turn_and_close(engine: OpenAIEngine | PairEngine) -> str:
    answer = await MixQuantChatModel(engine=engine).ainvoke("hi")
    await engine.aclose()
    return str(answer.content)


def _worker(engine: OpenAIEngine | PairEngine, told: Connection) -> None:
    try:
        told.send(asyncio.run(_turn_and_close(engine)))
    except BaseException as error:  # the test shows what it was
        told.send(repr(error))


async def in_process(method: str, engine: OpenAIEngine | PairEngine) -> str:
    """What a worker process answers, within 40 seconds; the servers run in this loop meanwhile."""
    context: Any = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(engine, there), daemon=True)
    process.start()
    try:
        told = await asyncio.to_thread(here.poll, 40)
        return str(here.recv()) if told else "the worker hung"
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
async def test_worker_takes_over_an_engine_that_has_run(
    server: Server, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked worker has a copy of the parent's loop, which says that it runs, and of its connections."""
    monkeypatch.setattr("mixquant_agents.engine.openai.engine._CLOSE_SECONDS", 1000)
    server.chunks = HELLO
    engine = OpenAIEngine("m", base_url=server.url)
    model = MixQuantChatModel(engine=engine)
    assert (await model.ainvoke("hi")).content == "Hello"
    assert await in_process(method, engine) == "Hello"
    assert (await model.ainvoke("hi")).content == "Hello", "the parent's connections are as they were"
    await engine.aclose()
    assert len(server.bodies) == 3


async def test_pair_of_servers_goes_into_a_forked_worker(server: Server) -> None:
    server.chunks = HELLO
    pair = PairEngine.of_servers("m", prefill_url=server.url, decode_url=server.url)
    assert (await MixQuantChatModel(engine=pair).ainvoke("hi")).content == "Hello"
    assert await in_process("fork", pair) == "Hello"
    await pair.aclose()


class Actor:
    """As Ray runs an async actor: built from pickled arguments, its methods on one loop in a thread of its own."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self._instance = cloudpickle.loads(cloudpickle.dumps(made))()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def call(self, name: str, *arguments: Any) -> "asyncio.Future[Any]":
        coroutine = getattr(self._instance, name)(*pickle.loads(pickle.dumps(arguments)))  # noqa: S301 - our own
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


async def test_chat_model_lives_in_an_actor(server: Server) -> None:
    server.chunks = HELLO
    engine = OpenAIEngine("m", base_url=server.url)
    model = MixQuantChatModel(engine=engine)
    await model.ainvoke("hi")

    class Agent:
        def __init__(self) -> None:
            self.model = model

        async def ask(self, text: str) -> Any:
            return await self.model.ainvoke(text)

        async def close(self) -> None:
            await self.model.engine.aclose()

    actor = Actor(Agent)
    answers = await asyncio.gather(*(actor.call("ask", "hi") for _ in range(3)))
    assert [answer.content for answer in answers] == ["Hello"] * 3
    assert answers[0].response_metadata["turn"]["prompt_tokens"] == 1
    await actor.call("close")
    actor.stop()
    assert (await model.ainvoke("hi")).content == "Hello", "the actor closed its own copy"
    await engine.aclose()


async def test_closing_does_not_wait_for_a_blocked_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.chunks = HELLO
    monkeypatch.setattr("mixquant_agents.engine.openai.engine._CLOSE_SECONDS", 0.05)
    engine = OpenAIEngine("m", base_url=server.url)
    other, release = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=other.run_forever, daemon=True)
    thread.start()
    model = MixQuantChatModel(engine=engine)
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(model.ainvoke("hi"), other))
    other.call_soon_threadsafe(release.wait)
    await asyncio.wait_for(engine.aclose(), 5)
    release.set()
    other.call_soon_threadsafe(other.stop)
    await asyncio.to_thread(thread.join, 5)
