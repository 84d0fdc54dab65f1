"""A server, or the router, as a process: started with a log of its own, and ended with its children."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no stubs

from mixquant_agents.errors import EngineStartError

__all__ = ["OwnedProcess"]

_owned: weakref.WeakSet[OwnedProcess] = weakref.WeakSet()

LOG_LINES = 12
"""Of a log that an error tells."""


class OwnedProcess:
    """A process that ends when its owner says so, and its children with it.

    Args:
        name: in messages and in the view of the health.
        log: file for what it prints.

    Attributes:
        url: where it answers.
        owner: id of the process that started it.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], *, url: str, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.url, self.log = name, url, log
        self._arguments, self._env = tuple(arguments), dict(env or {})
        self._process: asyncio.subprocess.Process | None = None
        self._children: set[psutil.Process] = set()
        self.owner = os.getpid()
        _owned.add(self)

    @property
    def pid(self) -> int | None:
        """The process's id; ``None`` before it was started."""
        return self._process.pid if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """Its exit code; ``None`` while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Start it; does not wait until it answers."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._env},
                start_new_session=True,  # Ctrl-C is for the owner, who ends it in its turn
            )

    async def wait(self) -> int:
        """Wait for its end; its exit code."""
        if self._process is None:
            raise EngineStartError(f"{self.name} was not started")
        return await self._process.wait()

    def failure(self) -> EngineStartError:
        """The error of one that ended by itself, with the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        tail = "\n".join([line for line in lines if line.strip()][-LOG_LINES:])
        return EngineStartError(
            f"{self.name} ended with code {self.exit_code}; its log ({self.log}) ends with:\n{tail}"
        )

    async def end(self, patience: float = 15.0) -> None:
        """Ask it to end, and kill it and what it left where it does not. Idempotent."""
        process = self._process
        if process is None:
            return
        self._remember_children()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), patience)
        self.kill()
        await process.wait()

    def kill(self) -> None:
        """Kill it and what it left, at once; does not wait. Idempotent."""
        self._remember_children()
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for child in self._children:
            with suppress(psutil.Error):
                child.kill()

    def _remember_children(self) -> None:
        """Children that make a session of their own are no part of the process's group."""
        if self.pid is not None:
            with suppress(psutil.Error):
                self._children |= set(psutil.Process(self.pid).children(recursive=True))


@atexit.register
def _kill_what_is_left() -> None:
    """An owner whose ending was broken off, as by a second Ctrl-C, leaves nothing behind."""
    for process in list(_owned):
        if process.exit_code is None and process.owner == os.getpid():
            process.kill()
