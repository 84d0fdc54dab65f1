"""The parent's end of a process that answers SQL: each question is answered in time, or the process dies."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixquant_tools.errors import LimitError, ToolError

__all__ = ["Worker"]

_CHILD = Path(__file__).with_name("child.py")
_START_SECONDS = 30.0
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # without which some builds of Python do not start
_GRACE = 0.5
"""Seconds after the limit at which a process that did not end itself is killed."""


class Worker:
    """One process. Not safe to share between threads; after :meth:`ask` has raised, it has ended.

    Args:
        settings: for the child (``uri``, ``seconds``, ``memory``, ``max_rows``, ``max_cell``, ``max_bytes``,
            ``max_sql``).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """
        Raises:
            ToolError: the process did not start.
        """
        self._settings = settings
        self._owner = os.getpid()
        libraries = {name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own child script, no shell
                [os.path.realpath(sys.executable), "-I", "-S", "-B", str(_CHILD), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"LANG": "C.UTF-8", **libraries},
                start_new_session=True,
            )
        except OSError as error:
            raise ToolError(f"the process that reads the database did not start ({error.strerror})") from None
        try:
            self._read(time.monotonic() + _START_SECONDS)
        except BaseException as error:
            self.end()
            if isinstance(error, EOFError | TimeoutError):
                raise ToolError("the process that reads the database did not start") from None
            raise

    @property
    def usable(self) -> bool:
        """Whether the process lives, and is a child of this process rather than of one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, sql: str | None) -> dict[str, Any]:
        """The child's answer to a statement; ``None`` asks for the schema.

        Raises:
            LimitError: it did not answer in time.
            ToolError: it died.
        """
        seconds = self._settings["seconds"]
        question = json.dumps({"sql": sql}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        try:
            stdin = self._process.stdin
            if stdin is None:
                raise EOFError
            stdin.write(question + b"\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(self._read(time.monotonic() + seconds + _GRACE))
        except BaseException as error:
            status = self.end()
            if isinstance(error, TimeoutError) or status == -signal.SIGALRM:
                raise LimitError(f"the statement ran longer than {seconds:g} s and was stopped; ask for less") from None
            if isinstance(error, OSError | EOFError):
                raise ToolError(f"the process that reads the database ended (status {status})") from None
            raise
        return answer

    def _read(self, deadline: float) -> bytes:
        """One line, without its end.

        Raises:
            TimeoutError: not within the deadline.
            EOFError: the process ended, or says more than it may.
        """
        stream = self._process.stdout
        if stream is None:
            raise EOFError
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        line = bytearray()
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
                raise TimeoutError
            piece = os.read(stream.fileno(), 65_536)
            line += piece
            if not piece or len(line) > 2 * self._settings["max_bytes"]:
                raise EOFError
        return bytes(line[:-1])

    def end(self) -> int | None:
        """Kill the process, if it is ours and still runs; its exit status."""
        if self._owner != os.getpid():
            return None
        if self._process.poll() is None and not self._ends_itself():
            self._process.kill()
        status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not sent has nobody to go to
                    stream.close()
        return status

    def _ends_itself(self) -> bool:
        """Whether its output has ended: then its exit status is about to come, and tells why."""
        stream = self._process.stdout
        poll = select.poll()
        if stream is None:
            return False
        poll.register(stream, select.POLLIN)
        if not any(event & select.POLLHUP for _, event in poll.poll(0)):
            return False
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return self._process.returncode is not None
