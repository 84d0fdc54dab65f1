"""Turn records as rows of the store, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

from mixquant_agents.records import TurnRecord

__all__ = [
    "INSERT_TURN",
    "SERIES",
    "StoredTurn",
    "from_microseconds",
    "row_of",
    "series_of",
    "to_microseconds",
    "turn_of",
]

SERIES = ("model", "engine", "policy", "prefill_format", "decode_format", "emulated", "device")
"""Fields that live in table ``series``."""

_SPECIAL = {*SERIES, "started_at", "tool_calls", "tool_seconds_before"}
_PLAIN = tuple(name for name in TurnRecord.model_fields if name not in _SPECIAL)
_BESIDE = ("tool_seconds_before", "root_run_id", "node", "trace_id")
_COLUMNS = (
    "id",
    *_PLAIN,
    "series_id",
    "started_us",
    "tool_calls",
    *_BESIDE,
)
INSERT_TURN = f"INSERT INTO turns ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 # field names

_plain = attrgetter(*_PLAIN)
series_of = attrgetter(*SERIES)
"""The key of a record's series."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: str) -> int:
    """ISO 8601 (UTC where it names no zone) to microseconds since the epoch, exactly."""
    moment = datetime.fromisoformat(instant)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> str:
    """Microseconds since the epoch to UTC, ISO 8601."""
    return (_EPOCH + timedelta(microseconds=value)).isoformat(timespec="microseconds")


@lru_cache(maxsize=4_096)
def _names(tool_calls: tuple[str, ...]) -> str:
    """Names as JSON; the same few come again and again."""
    return json.dumps(tool_calls)


def row_of(
    number: int,
    turn: TurnRecord,
    series: int,
    started_us: int,
    tool_seconds: float | None,
    root_run_id: str | None,
    node: str | None,
    trace_id: str | None,
) -> tuple[Any, ...]:
    """The values of :data:`INSERT_TURN`."""
    calls = _names(turn.tool_calls) if turn.tool_calls else None
    return (number, *_plain(turn), series, started_us, calls, tool_seconds, root_run_id, node, trace_id)


class StoredTurn(TurnRecord):
    """A record as the store holds it, with what the store knows beside it.

    Attributes:
        number: the row's id; grows in the order of writing.
        root_run_id: the agent run it belongs to (its own run where nothing says otherwise).
        node: graph node that made the call.
        trace_id: hex id of its OpenTelemetry trace.
    """

    number: int
    root_run_id: str | None = None
    node: str | None = None
    trace_id: str | None = None

    @property
    def started_us(self) -> int:
        """Start, microseconds since the epoch."""
        return to_microseconds(self.started_at)


def turn_of(row: dict[str, Any]) -> StoredTurn:
    """From a row of ``turns JOIN series``, by column name."""
    # A store of another version may lack columns, and have further ones.
    values = {name: row.get(name) for name in (*_PLAIN, *SERIES, *_BESIDE)}
    values["number"] = row["id"]
    values["started_at"] = from_microseconds(row["started_us"])
    values["tool_calls"] = tuple(json.loads(row["tool_calls"])) if row["tool_calls"] else ()
    values["aborted"] = bool(row["aborted"])
    values["emulated"] = None if row["emulated"] is None else bool(row["emulated"])
    # Not validated again: one row that another version wrote must not make a page fail.
    return StoredTurn.model_construct(**values)
