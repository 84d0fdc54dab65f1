"""Start-up progress on stderr: a spinner on a terminal; elsewhere a line for each stage, and one every few seconds."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Progress", "start_progress"]

logger = logging.getLogger("mixquant_agents.engine")

_MARK, _TAIL = "mixquant: calibrating", 4096
"""How the plugin's lines about a calibration begin; bytes at the log's end that are looked at."""

HEARTBEAT_SECONDS = 5.0
"""Between two lines of one stage, outside a terminal: a start that takes long must not look like one that hangs."""
SLOW_HEARTBEAT_SECONDS = 30.0
"""The same, once a stage has taken minutes."""


class Progress:
    """What the start is doing, and for how long (seconds, monotonic). ``log`` is written by the engine's processes."""

    def __init__(self, model: str, log: str | None = None) -> None:
        self.model = model
        self._log = log
        self.began = time.monotonic()
        self.stage = ""
        self._entered = self.began
        self._status: object | None = None
        self._lines = False
        self._ended = threading.Event()

    @property
    def seconds(self) -> float:
        """Since the start began."""
        return time.monotonic() - self.began

    def enter(self, stage: str) -> None:
        """A new stage began."""
        self.stage, self._entered = stage, time.monotonic()
        logger.debug("engine start: %s (%.1f s)", stage, self.seconds)
        self._line()

    def _line(self) -> None:
        if self._status is not None:
            from rich.text import Text  # a name may hold what rich takes for markup

            text = Text(f"Starting the engine for {self.model}: {self.stage}{self._note()}")
            self._status.update(text)  # type: ignore[attr-defined]  # rich
        elif self._lines:
            _say(f"  {self.seconds:3.0f} s  {self.stage}{self._note()}")

    def _note(self) -> str:
        """What the engine's processes say of a long piece of work, in brackets."""
        if self._log is None:
            return ""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.path.getsize(self._log) - _TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        last = lines[-1] if lines else ""
        return f" ({last.partition('mixquant: ')[2]})" if _MARK in last else ""

    @contextmanager
    def _beating(self) -> Iterator[None]:
        heartbeat = threading.Thread(target=self._beat, name="mixquant-start-progress", daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            self._ended.set()
            heartbeat.join()

    def _beat(self) -> None:
        shown = self.began
        while not self._ended.wait(HEARTBEAT_SECONDS):
            now = time.monotonic()
            wait = min(SLOW_HEARTBEAT_SECONDS, (now - self._entered) / 4)
            if self._status is None and now - shown < wait:
                continue
            self._line()
            shown = now


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201  progress belongs on stderr


@contextmanager
def start_progress(model: str, log: str | None = None) -> Iterator[Progress]:
    """Show the start on stderr; our log gets its duration. ``log`` is the engine's: its last words on a calibration are
    shown."""
    progress = Progress(model, log)
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(f"Starting the engine for {model}")) as status:
            progress._status = status
            with progress._beating():
                yield progress
    else:
        _say(f"Starting the engine for {model}")
        progress._lines = True
        with progress._beating():
            yield progress
    _say(f"Engine ready after {progress.seconds:.1f} s")
    logger.info("engine for %s ready after %.1f s", model, progress.seconds)
