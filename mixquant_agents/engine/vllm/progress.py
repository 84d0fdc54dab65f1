"""Start-up progress on stderr: a spinner on a terminal, one line at the beginning and one at the end elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Progress", "start_progress"]

logger = logging.getLogger("mixquant_agents.engine")


class Progress:
    """What the start is doing, and for how long (seconds, monotonic)."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.began = time.monotonic()
        self.stage = ""
        self._status: object | None = None

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


@contextmanager
def start_progress(model: str) -> Iterator[Progress]:
    """Show the start on stderr; the log gets its duration."""
    progress = Progress(model)
    interactive = sys.stderr is not None and sys.stderr.isatty()
    if interactive:
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(f"Starting the engine for {model}")) as status:
            progress._status = status
            yield progress
    else:
        print(f"Starting the engine for {model} …", file=sys.stderr, flush=True)  # noqa: T201  progress belongs on stderr
        yield progress
    print(f"Engine ready after {progress.seconds:.1f} s", file=sys.stderr, flush=True)  # noqa: T201  see above
    logger.info("engine for %s ready after %.1f s", model, progress.seconds)
