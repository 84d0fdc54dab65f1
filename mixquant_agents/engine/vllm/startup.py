"""A start that can be given up: whoever closes an engine that is still starting does not wait for it to be ready."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from mixquant_agents.errors import EngineClosedError

__all__ = ["StartControl"]


class StartControl:
    """One start, seen from the threads that wait for it.

    Attributes:
        cancelled: somebody has closed the engine meanwhile.
        processes: ids of the processes that the start has made here (vLLM's engine core; its workers are its own).
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._before: set[BaseProcess] | None = None
        self._launched = False
        self.cancelled = False
        self.processes: list[int] = []

    def check(self) -> None:
        """Called by the start between its stages.

        Raises:
            EngineClosedError: it has been given up.
        """
        if self.cancelled:
            raise EngineClosedError(f"the engine for {self._model!r} was closed while it was starting")

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Around the stage that makes vLLM's processes; starts never overlap, so new ones are this start's."""
        with self._lock:
            self.check()
            self._before = set(multiprocessing.active_children())
        try:
            yield
            self._launched = True
        finally:
            with self._lock:
                made = set(multiprocessing.active_children()) - (self._before or set())
                self.processes = [process.pid for process in made if process.pid is not None]
                self._before = None

    def cancel_start(self) -> bool:
        """End the engine core that this start has made, if any; its workers end with it. Usable from any thread, and to
        be called again while it says so: the core may be about to be made.

        Returns:
            Whether there are, or may soon be, processes to wait for.
        """
        with self._lock:
            self.cancelled, before = True, self._before
        if before is None:
            return self._launched  # the start ends its processes itself, as nobody wants them any more
        for process in set(multiprocessing.active_children()) - before:
            if process.name.startswith("EngineCore"):
                process.kill()
        return True
