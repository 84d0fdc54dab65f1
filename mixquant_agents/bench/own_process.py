"""An engine in a process of its own, spoken to over a pipe: several start at once, each with its own environment and
its own GPU, and none waits for another's interpreter."""

from __future__ import annotations

import asyncio
import functools
import itertools
import multiprocessing
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.errors import EngineDeadError, EngineError

__all__ = ["OwnProcessEngine", "Started", "vllm_engine"]

Make = Callable[[], Engine]
T = TypeVar("T")
Post = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Started:
    """What a process says of its engine once it runs.

    Attributes:
        seconds: the engine's start; ``None`` where there was nothing to start.
        memory_bytes: held by the engine: of the process's GPUs, or of this machine; ``None`` where nobody can tell.
        limits: see :meth:`VllmEngine.limits`; empty for another engine.
    """

    info: EngineInfo
    seconds: float | None
    memory_bytes: int | None
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The call ended with an error, in its own words."""

    words: str


_END = None
"""Ends a call's answers; sent to the process, ends that."""


def vllm_engine(config: EngineConfig) -> Make:
    """What makes a :class:`VllmEngine` there."""
    return functools.partial(VllmEngine, config)


class OwnProcessEngine(Engine):
    """The engine that ``make`` makes, in a new process. A turn that is closed early runs on there: this is for
    measurements.

    Args:
        make: called in the process; pickled on its way.
        environment: variables of the process.
    """

    def __init__(self, make: Make, environment: Mapping[str, str] | None = None) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._connection, child_connection = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(child_connection, make, dict(environment or {})))
        self._process.start()
        child_connection.close()
        self._numbers = itertools.count()
        self._posts: dict[int, Post] = {}
        self._lock = threading.Lock()
        self._ended = False
        self.started: Started | None = None
        self._reader = threading.Thread(target=self._read, name="own-process-engine", daemon=True)
        self._reader.start()

    @property
    def info(self) -> EngineInfo:
        """The engine's own, once it has started."""
        if self.started is None:
            return EngineInfo(engine="own process", model="not started", token_ids=True)
        return self.started.info

    @property
    def start_seconds(self) -> float | None:
        """How long the engine's start took."""
        return None if self.started is None else self.started.seconds

    async def start(self) -> None:
        """Start the engine.

        Raises:
            EngineError: it did not start.
        """
        if self.started is None:
            self.started = await self._call("start")

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn.

        Raises:
            EngineError: the turn failed there, whatever the reason.
        """
        async for delta in self._answers("stream", request):
            yield delta

    async def render(self, request: EngineRequest) -> Sequence[int]:
        """The token ids of the request's prompt."""
        tokens: Sequence[int] = await self._call("render", request)
        return tokens

    async def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """``function(engine, *arguments)`` in the process, without the pipe between it and the engine.

        Raises:
            EngineError: it failed there, whatever the reason.
        """
        value: T = await self._call("run", function, *arguments)
        return value

    async def aclose(self) -> None:
        """End engine and process."""
        with suppress(OSError, ValueError):  # it has ended already
            self._connection.send(_END)
        await asyncio.to_thread(self._process.join)
        await asyncio.to_thread(self._reader.join)

    async def _call(self, name: str, *arguments: Any) -> Any:
        return [answer async for answer in self._answers(name, *arguments)][-1]

    async def _answers(self, name: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        here, inbox, number = asyncio.get_running_loop(), asyncio.Queue[Any](), next(self._numbers)
        with self._lock:
            if self._ended:
                raise self._dead()
            self._posts[number] = lambda item: here.call_soon_threadsafe(inbox.put_nowait, item)
        try:
            self._connection.send((number, name, arguments))
            while (item := await inbox.get()) is not _END:
                if isinstance(item, _Failed):
                    raise EngineError(item.words)
                if isinstance(item, EngineError):
                    raise item
                yield item
        finally:
            self._posts.pop(number, None)

    def _read(self) -> None:
        """Hand on what the process says, until it ends."""
        with suppress(EOFError, OSError):
            while True:
                number, item = self._connection.recv()
                if (post := self._posts.get(number)) is not None:
                    post(item)
        with self._lock:
            self._ended = True
            for post in list(self._posts.values()):
                with suppress(RuntimeError):  # the loop that waited is closed
                    post(self._dead())

    def _dead(self) -> EngineDeadError:
        return EngineDeadError(f"the engine's process {self._process.pid} has ended; look at its output")


def _serve(connection: Connection, make: Make, environment: Mapping[str, str]) -> None:
    """The process."""
    os.environ.update(environment)
    asyncio.run(_answer_calls(connection, make()))


async def _answer_calls(connection: Connection, engine: Engine) -> None:
    """Answer calls until the other side says so, or is gone."""
    calls: set[asyncio.Task[None]] = set()

    async def stream(number: int, request: EngineRequest) -> None:
        async for delta in engine.stream(request):
            connection.send((number, delta))

    async def render(number: int, request: EngineRequest) -> None:
        connection.send((number, await engine.render(request)))

    async def start(number: int) -> None:
        connection.send((number, await _started(engine)))

    async def run(number: int, function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        connection.send((number, await function(engine, *arguments)))

    doing: Mapping[str, Callable[..., Coroutine[Any, Any, None]]]
    doing = {"start": start, "stream": stream, "render": render, "run": run}

    async def answer(number: int, name: str, arguments: Sequence[Any]) -> None:
        try:
            await doing[name](number, *arguments)
        except Exception as error:  # whatever it is, the caller hears of it
            connection.send((number, _Failed(f"{type(error).__name__}: {error}")))
        else:
            connection.send((number, _END))

    try:
        with suppress(EOFError):
            while (call := await asyncio.to_thread(connection.recv)) is not _END:
                calls.add(task := asyncio.create_task(answer(*call)))
                task.add_done_callback(calls.discard)
    finally:
        await engine.aclose()


async def _started(engine: Engine) -> Started:
    if not isinstance(engine, VllmEngine):
        await engine.start()
        return Started(engine.info, engine.start_seconds, None, {})
    before = _memory()
    await engine.start()
    after = _memory()
    held = after - before if before is not None and after is not None else None
    return Started(engine.info, engine.start_seconds, held, await engine.limits())


def _memory() -> int | None:
    """Bytes that are held by now: of this process's GPUs, by all programs, or of this machine by its children."""
    import psutil  # type: ignore[import-untyped]  # it has no stubs

    from mixquant_agents.engine.vllm.memory import device_bytes, resident_bytes

    on_gpu = device_bytes()
    return on_gpu if on_gpu is not None else resident_bytes(psutil.Process().children(recursive=True))
