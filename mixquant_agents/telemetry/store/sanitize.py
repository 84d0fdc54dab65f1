"""Events that SQLite would refuse, made writable: what cannot be written as it is must neither be lost nor stop others.

Only asked for when writing has failed, so that ordinary events cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from mixquant_agents.records import TurnRecord

__all__ = ["sanitize_fields", "sanitize_value"]

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


def sanitize_fields(value: Any) -> Any:
    """A dataclass, and a record in it, with every field made writable."""
    return replace(value, **{item.name: _sanitize(getattr(value, item.name)) for item in fields(value)})


def _sanitize(value: Any) -> Any:
    if isinstance(value, TurnRecord):
        return value.model_copy(update={name: sanitize_value(inner) for name, inner in value})
    return sanitize_value(value)
