"""Sync callers: one daemon thread owns an event loop and runs the same coroutines; the caller's thread waits for it."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from mixquant_agents.errors import RequestError

__all__ = ["LoopThread", "loop_thread"]

T = TypeVar("T")


class LoopThread:
    """A thread with an event loop of its own. It never polls: both sides sleep until there is something to do."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mixquant-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end; an interrupt of the caller (Ctrl-C) cancels it.

        Raises:
            RequestError: called from the loop's own thread, which would wait for itself.
        """
        self._check_thread(work)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The items of ``source``. Leaving the iteration early closes ``source`` before this returns."""
        self._check_thread(source)
        inbox: queue.SimpleQueue[_Item[T] | _End] = queue.SimpleQueue()
        end = _End(RequestError("the stream was cancelled"))
        future = asyncio.run_coroutine_threadsafe(_pump(source, inbox, end), self._loop)
        ended = False
        try:
            while not isinstance(item := inbox.get(), _End):
                yield item.value
            ended = True
            if item.error is not None:
                raise item.error
        finally:
            if not ended:
                future.cancel()
                # The garbage collector may close this in the loop's own thread, which must not wait for itself.
                while threading.current_thread() is not self._thread and not isinstance(inbox.get(), _End):
                    pass

    def _check_thread(self, work: Coroutine[Any, Any, Any] | AsyncGenerator[Any, None]) -> None:
        if threading.current_thread() is not self._thread:
            return
        if isinstance(work, Coroutine):
            work.close()
        raise RequestError(
            "a sync call (invoke, stream, batch) was made from inside another one's turn; use ainvoke or astream there"
        )


class _Item(Generic[T]):
    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class _End:
    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def _pump(source: AsyncGenerator[T, None], inbox: queue.SimpleQueue[Any], end: _End) -> None:
    """Move the items into ``inbox``; its last entry is always ``end``."""
    try:
        async with aclosing(source):
            async for value in source:
                inbox.put(_Item(value))
        end.error = None
    except Exception as error:
        end.error = error
    finally:
        inbox.put(end)


_shared: LoopThread | None = None
_owner = 0
_lock = threading.Lock()


def loop_thread() -> LoopThread:
    """The process's loop thread, started at first use. A forked child gets one of its own."""
    global _shared, _owner
    with _lock:
        if _shared is None or _owner != os.getpid():
            _shared, _owner = LoopThread(), os.getpid()
        return _shared
