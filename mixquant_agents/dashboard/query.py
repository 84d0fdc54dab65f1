"""Between addresses and filters: what a page shows is all in its URL."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypedDict
from urllib.parse import urlencode

from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import from_microseconds

__all__ = [
    "EVERYTHING",
    "FITTING",
    "WINDOWS",
    "ThreadsAsked",
    "link",
    "names_in",
    "page_filter",
    "threads_asked",
    "window_start",
]

FITTING = "fit"
EVERYTHING = "all"
WINDOWS = (
    (FITTING, "latest activity"),
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
    (EVERYTHING, "everything"),
)
_SECONDS = {"15m": 900, "1h": 3_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
LATEST_TURNS = 12
"""The latest activity holds at least so many turns, where there are so many."""


def link(path: str, values: Mapping[str, str | None]) -> str:
    """An address with the parameters that are set."""
    given = {name: value for name, value in values.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


def window_start(window: str) -> str | None:
    """The instant at which a window begins, UTC, ISO 8601; ``None`` for everything and for an unknown name."""
    seconds = _SECONDS.get(window)
    return None if seconds is None else (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def page_filter(store: TurnStore, query: Mapping[str, str], default: str = FITTING) -> tuple[TurnFilter, str]:
    """``(filter, window)`` of an address; ``default`` is the window of a page whose address names none.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    window = query.get("window") or default
    turn_filter = TurnFilter.from_mapping(query)
    if turn_filter.since is None and turn_filter.until is None and window == FITTING:
        return latest_activity(store, turn_filter), window
    if turn_filter.since is None:
        turn_filter = replace(turn_filter, since=window_start(window))
    return turn_filter, window


def latest_activity(store: TurnStore, turn_filter: TurnFilter, *, now: float | None = None) -> TurnFilter:
    """The window that fits what there is to see: back from the newest turn, the shortest of :data:`WINDOWS` that holds
    the newest turns; from the first turn in it to now, or, where nothing ran for as long again, to the last turn."""
    newest = store.turns(turn_filter, limit=LATEST_TURNS)
    if not newest:
        return turn_filter
    starts = [turn.started_us for turn in newest]
    span = (max(starts) - min(starts)) / 1e6
    length = next((seconds for seconds in _SECONDS.values() if seconds >= span), None)
    since = None if length is None else from_microseconds(max(starts) - int(length * 1e6))
    first = store.first_us(replace(turn_filter, since=since))
    present = time.time() if now is None else now
    ended = max(turn.started_us / 1e6 + (turn.total_seconds or 0.0) for turn in newest)
    over = present - ended > (span if length is None else length)
    return replace(
        turn_filter,
        since=since if first is None else from_microseconds(first),
        until=from_microseconds(int(ended * 1e6) + 1) if over else None,
    )


def names_in(store: TurnStore) -> dict[str, list[str]]:
    series = store.series()
    return {name: sorted({getattr(entry, name) for entry in series}) for name in ("policy", "model", "engine")}


class ThreadsAsked(TypedDict):
    """What an address asks of the list of threads beside its filter, as arguments of
    :meth:`~mixquant_agents.telemetry.store.reader.TurnStore.threads`."""

    search: str | None
    order: str
    descending: bool
    failed_tools: bool


def threads_asked(query: Mapping[str, str]) -> ThreadsAsked:
    """Search, order and choice of the list of threads.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    tools = query.get("tools") or None
    if tools not in (None, "failed"):
        raise RequestError(f"tools {tools!r} is unknown; 'failed' chooses threads in which a tool failed")
    order = query.get("order") or "last"
    return {
        "search": query.get("search"),
        "order": order.removeprefix("-"),
        "descending": not order.startswith("-"),
        "failed_tools": tools is not None,
    }
