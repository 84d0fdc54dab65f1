"""Start-up progress on stderr: a spinner on a terminal; elsewhere a line for each stage, and one every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Progress", "start_progress"]

logger = logging.getLogger("mixquant_agents.engine")

HEARTBEAT_SECONDS = 5.0
"""Between two lines of one stage, outside a terminal: a start that takes long must not look like one that hangs."""


class Progress:
    """What the start is doing, and for how long (seconds, monotonic)."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.began = time.monotonic()
        self.stage = ""
        self._status: object | None = None
        self._lines = False
        self._ended = threading.Event()

    @property
    def seconds(self) -> float:
        """Since the start began."""
        return time.monotonic() - self.began

    def enter(self, stage: str) -> None:
        """A new stage began."""
        self.stage = stage
        logger.debug("engine start: %s (%.1f s)", stage, self.seconds)
        if self._status is not None:
            from rich.text import Text  # a name may hold what rich takes for markup

            self._status.update(Text(f"Starting the engine for {self.model}: {stage}"))  # type: ignore[attr-defined]  # rich
        elif self._lines:
            self._line()

    def _line(self) -> None:
        _say(f"  {self.seconds:3.0f} s  {self.stage}")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._line()


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201  progress belongs on stderr


@contextmanager
def start_progress(model: str) -> Iterator[Progress]:
    """Show the start on stderr; the log gets its duration."""
    progress = Progress(model)
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(f"Starting the engine for {model}")) as status:
            progress._status = status
            yield progress
    else:
        _say(f"Starting the engine for {model}")
        progress._lines = True
        heartbeat = threading.Thread(target=progress._beat, name="mixquant-start-progress", daemon=True)
        heartbeat.start()
        try:
            yield progress
        finally:
            progress._ended.set()
            heartbeat.join()
    _say(f"Engine ready after {progress.seconds:.1f} s")
    logger.info("engine for %s ready after %.1f s", model, progress.seconds)
