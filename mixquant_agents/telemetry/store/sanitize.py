"""Events that SQLite would refuse, made writable: what cannot be written as it is must neither be lost nor stop others.

Only asked for when writing has failed, so that ordinary events cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from mixquant_agents.telemetry.events import Event, RunLink, TurnEvent

__all__ = ["sanitize_event", "sanitize_value"]

LARGEST = 2**63 - 1
LONGEST = 1_000_000
"""Characters of one field that are kept."""


def sanitize_value(value: Any) -> Any:
    """``value`` as SQLite takes it: lone surrogates written out (``\\\\ud800``), what is no finite number and what does
    not fit into 64 bits unknown, text cut at a million characters."""
    if type(value) is str:  # an enum stays what it is
        return value[:LONGEST].encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) > LARGEST:
        return None
    if isinstance(value, tuple):
        return tuple(sanitize_value(item) for item in value)
    return value


def sanitize_event(event: Event) -> Event:
    """The event with every field made writable."""
    if isinstance(event, TurnEvent):
        clean = {name: sanitize_value(value) for name, value in event.turn}
        return replace(event, turn=event.turn.model_copy(update=clean), trace_id=sanitize_value(event.trace_id))
    if isinstance(event, RunLink):
        return event
    return replace(event, **{item.name: sanitize_value(getattr(event, item.name)) for item in fields(event)})
