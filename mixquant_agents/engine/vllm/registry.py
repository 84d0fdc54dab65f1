"""Which engines exist: one per :attr:`EngineConfig.fingerprint`, counted, closed once, replaced when dead."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from contextlib import suppress

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.core import RunningEngine
from mixquant_agents.engine.vllm.startup import StartControl
from mixquant_agents.errors import EngineClosedError

__all__ = ["EngineHandle", "acquire", "close_all"]


class EngineHandle:
    """A place for one engine: started on first use, started again after its death, closed with its last reference."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.references = 1
        self.closed = False
        self._lock = threading.Lock()
        self._start: concurrent.futures.Future[RunningEngine] | None = None
        self._control = StartControl(config.model)
        with _registry_lock:
            _handles.add(self)

    @property
    def running(self) -> RunningEngine | None:
        """The engine, if it has started and not died."""
        start = self._start
        if start is None or not start.done() or start.exception() is not None:
            return None
        return start.result() if start.result().alive else None

    async def engine(self) -> RunningEngine:
        """The running engine; starts one if need be. Many callers, from any loops, wait for one start.

        Raises:
            EngineClosedError: the handle was closed.
            MixQuantError: the start failed; the next call tries again.
        """
        if (running := self.running) is not None and not self.closed:
            return running
        return await asyncio.shield(asyncio.wrap_future(self._starting()))

    def _starting(self) -> concurrent.futures.Future[RunningEngine]:
        with self._lock:
            if self.closed:
                raise EngineClosedError(f"the engine for {self.config.model!r} was closed; make a new one")
            if self._start is None or (self._start.done() and self.running is None):
                start: concurrent.futures.Future[RunningEngine] = concurrent.futures.Future()
                start.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for the others
                before, self._start, self._control = self._start, start, StartControl(self.config.model)
                threading.Thread(target=self._run_start, args=(start, before, self._control), daemon=True).start()
            return self._start

    def _run_start(
        self,
        start: concurrent.futures.Future[RunningEngine],
        before: concurrent.futures.Future[RunningEngine] | None,
        control: StartControl,
    ) -> None:
        """Clear away the dead engine, if any, and start one; runs in a thread of its own."""
        try:
            if before is not None and before.exception() is None:
                before.result().close()
            engine = RunningEngine(self.config, control)
        except BaseException as error:  # every waiter gets it
            start.set_exception(error)
            return
        with self._lock:
            if not self.closed:
                start.set_result(engine)
                return
        engine.close()
        start.set_exception(EngineClosedError(f"the engine for {self.config.model!r} was closed; make a new one"))

    def suspend(self) -> None:
        """End the running engine's processes, whoever refers to it (blocking); the next turn starts it again."""
        with self._lock:
            start = self._start
            if start is None or not start.done():
                return
            self._start = None
        with suppress(Exception):  # a start that failed left nothing to close
            start.result().close()

    def reset_after_fork(self) -> None:
        """In a forked child: what runs or starts is the parent's; the next turn here starts an engine of its own."""
        _left_to_parents.append(self._start)
        self._lock, self._start, self._control = threading.Lock(), None, StartControl(self.config.model)

    def release(self) -> None:
        """A holder is gone without having closed: it counts no more, but what runs goes on, for others or for later."""
        with _registry_lock:
            self.references -= 1

    def close(self) -> None:
        """Drop one reference; the last one ends the engine (blocking)."""
        with _registry_lock:
            self.references -= 1
            if self.references > 0:
                return
            _handles.discard(self)
            if _shared.get(self.config.fingerprint) is self:
                del _shared[self.config.fingerprint]
        self.end()

    def end(self, *, wait: bool = True) -> None:
        """End the engine whatever refers to it (blocking). One that is starting is given up; with ``wait``, until its
        processes are gone. A start that has no processes yet ends by itself at its next stage."""
        with self._lock:
            self.closed = True
            start, control = self._start, self._control
            started = start is not None and start.done()
        if start is None:
            return
        if started:
            with suppress(Exception):  # a start that failed left nothing to close
                start.result().close()
        while not start.done() and control.cancel_start() and wait:
            concurrent.futures.wait([start], 0.25)


_registry_lock = threading.RLock()
"""Taken by the garbage collector too, wherever it happens to run."""
_handles: set[EngineHandle] = set()
_shared: dict[str, EngineHandle] = {}


def acquire(config: EngineConfig) -> EngineHandle:
    """The shared handle for these settings, with one more reference."""
    key = config.fingerprint
    with _registry_lock:
        if (handle := _shared.get(key)) is not None:
            handle.references += 1
            return handle
    made = EngineHandle(config)
    with _registry_lock:
        if (other := _shared.setdefault(key, made)) is not made:
            _handles.discard(made)
            other.references += 1
    return other


def close_all(*, wait: bool = True) -> None:
    """End every engine of this process (blocking). Runs by itself when the interpreter exits.

    Args:
        wait: also wait for the end of engines that are just starting; else their processes end with this one.
    """
    with _registry_lock:
        handles = list(_handles)
        _handles.clear()
        _shared.clear()
    for handle in handles:
        handle.end(wait=wait)


_left_to_parents: list[object] = []
"""Engines that a forked child inherited; kept, because vLLM ends their processes when nobody refers to them."""


def _forget() -> None:
    """A forked child has the objects but neither threads nor the right to close the parent's engines."""
    global _registry_lock
    _registry_lock = threading.RLock()
    for handle in _handles:
        handle.reset_after_fork()


atexit.register(close_all, wait=False)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
