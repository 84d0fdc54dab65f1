"""Results that grow: what a running tool already knows is read while it works on the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["ResultReader", "growing_result", "reading"]

log = logging.getLogger(__name__)

_reader: ContextVar[ResultReader | None] = ContextVar("mixquant_growing_result", default=None)


def growing_result(text: str) -> None:
    """Tell, inside a tool, how its result begins. Whatever is told once must stay.

    ::

        @tool
        async def search(query: str) -> str:
            found = ""
            async for passage in look_up(query):
                found += passage
                growing_result(found)
            return found

    The model reads it while the tool goes on, where the agent has a :class:`PrefetchMiddleware`; elsewhere nothing
    happens. May be called from any thread, as often as is handy.
    """
    reader = _reader.get()
    if reader is not None:
        reader.tell(text)


@contextmanager
def reading(reader: ResultReader) -> Iterator[None]:
    """Be where :func:`growing_result` goes, for the tool that runs inside."""
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)


class ResultReader:
    """Reads one growing result ahead, the newest state after each reading. Made and closed in an event loop.

    Args:
        prefetch: reads ``text`` into the prefix cache.
        step: characters by which a result must have grown to be read again, and by an eighth: so however long it gets
            it is not rendered too often.
    """

    def __init__(self, prefetch: Callable[[str], Coroutine[Any, Any, int]], step: int) -> None:
        self._prefetch, self._step = prefetch, step
        self._loop = asyncio.get_running_loop()
        self._text, self._read = "", -step
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def tell(self, text: str) -> None:
        """The result as far as it is known (any thread)."""
        try:
            self._loop.call_soon_threadsafe(self._told, text)
        except RuntimeError:  # the loop has ended, and with it the agent
            return

    def _told(self, text: str) -> None:
        self._text = text
        if not self._closed and (self._task is None or self._task.done()) and self._due():
            self._task = self._loop.create_task(self._run(), name="mixquant-prefetch")

    def _due(self) -> bool:
        return len(self._text) - self._read >= max(self._step, self._read // 8)

    async def _run(self) -> None:
        while self._due():
            text = self._text
            try:
                await self._prefetch(text)
            except Exception:  # reading ahead is a favour: no tool fails for it
                log.debug("a tool's result could not be read ahead", exc_info=True)
                return
            self._read = len(text)

    async def close(self) -> None:
        """The tool has ended: the turn that follows reads the rest itself."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
