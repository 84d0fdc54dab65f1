"""Between addresses and filters: what a page shows is all in its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore

__all__ = ["DEFAULT_WINDOW", "WINDOWS", "link", "names_in", "page_filter", "window_start"]

WINDOWS = (
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
    ("all", "everything"),
)
_SECONDS = {"15m": 900, "1h": 3_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
DEFAULT_WINDOW = "7d"


def link(path: str, values: Mapping[str, str | None]) -> str:
    """An address with the parameters that are set."""
    given = {name: value for name, value in values.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


def window_start(window: str) -> str | None:
    """The instant at which a window begins, UTC, ISO 8601; ``None`` for everything and for an unknown name."""
    seconds = _SECONDS.get(window)
    return None if seconds is None else (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def page_filter(query: Mapping[str, str]) -> tuple[TurnFilter, str]:
    """``(filter, window)`` of an address.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    window = query.get("window") or DEFAULT_WINDOW
    turn_filter = TurnFilter.from_mapping(query)
    if turn_filter.since is None:
        turn_filter = replace(turn_filter, since=window_start(window))
    return turn_filter, window


def names_in(store: TurnStore) -> dict[str, list[str]]:
    series = store.series()
    return {name: sorted({getattr(entry, name) for entry in series}) for name in ("policy", "model", "engine")}
