"""Asynchronous tests here have a clock of their own: nothing waits, and times are exact on a machine however busy."""

import asyncio
import selectors
import time
from collections.abc import Callable

import pytest


class Clock(selectors.DefaultSelector):
    """A selector that waits for no timer: the time that it would have waited has passed."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout if timeout is None else 0)
        if not events and timeout is not None and timeout > 0:
            Clock.now += timeout
        return events


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"clock": lambda: asyncio.SelectorEventLoop(Clock())}


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``time.monotonic`` of asynchronous tests, which event loops read, too."""
    if asyncio.iscoroutinefunction(request.function):
        monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
