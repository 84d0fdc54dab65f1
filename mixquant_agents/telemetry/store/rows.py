"""Turn records as rows of the store, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from mixquant_agents.records import COUNTS, TIMES, TurnRecord

__all__ = [
    "INSERT_TURN",
    "SERIES",
    "UNREADABLE",
    "StoredTurn",
    "TurnLinks",
    "finite_score",
    "from_microseconds",
    "number",
    "row_of",
    "series_of",
    "text",
    "to_microseconds",
    "turn_of",
    "whole_number",
]

SERIES = ("model", "engine", "policy", "prefill_format", "decode_format", "emulated", "device")
"""Fields that live in table ``series``."""

_SPECIAL = {*SERIES, "started_at", "tool_calls", "tool_seconds_before"}
_PLAIN = tuple(name for name in TurnRecord.model_fields if name not in _SPECIAL)
_BESIDE = ("tool_seconds_before", "root_run_id", "node", "trace_id", "parent_id", "agent_id")
_COLUMNS = (
    "id",
    *_PLAIN,
    "series_id",
    "started_us",
    "tool_calls",
    *_BESIDE,
)
INSERT_TURN = f"INSERT INTO turns ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 # field names

UNREADABLE = "?"
"""Stands for a name that a row should have and does not."""
LARGEST = 2**63 - 1
_NUMBERS = {count.field for count in COUNTS} | {time.field for time in TIMES}
_TEXTS = tuple(
    name
    for name in (*_PLAIN, *SERIES, "root_run_id", "node", "trace_id", "parent_id", "agent_id")
    if name not in {*_NUMBERS, "record_version", "turn_index", "aborted", "emulated"}
)
_NEVER_EMPTY = ("turn_id", "model", "engine", "policy")

_plain = attrgetter(*_PLAIN)
series_of = attrgetter(*SERIES)
"""The key of a record's series."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def to_microseconds(instant: str) -> int:
    """ISO 8601 (UTC where it names no zone) to microseconds since the epoch, exactly."""
    moment = datetime.fromisoformat(instant)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> str:
    """Microseconds since the epoch to UTC, ISO 8601; what no calendar holds is its first or last instant."""
    value = max(_FIRST_US, min(value, _LAST_US))
    return (_EPOCH + timedelta(microseconds=value)).isoformat(timespec="microseconds")


@lru_cache(maxsize=4_096)
def _names(tool_calls: tuple[str, ...]) -> str:
    """Names as JSON; the same few come again and again."""
    return json.dumps(tool_calls)


class TurnLinks(NamedTuple):
    """What is known of a turn from what was recorded before it; ``None`` where nothing is.

    Attributes:
        root_run_id: the agent run it belongs to.
        node: graph node that made the call.
        parent_id: nearest span around the call.
        agent_id: see :class:`~mixquant_agents.telemetry.events.RunLink`.
        tool_seconds: how long tools of the same agent ran since its turn before.
    """

    root_run_id: str | None = None
    node: str | None = None
    parent_id: str | None = None
    agent_id: str | None = None
    tool_seconds: float | None = None


def row_of(
    number: int,
    turn: TurnRecord,
    series: int,
    started_us: int,
    tool_seconds: float | None,
    links: TurnLinks,
    trace_id: str | None,
) -> tuple[Any, ...]:
    """The values of :data:`INSERT_TURN`."""
    calls = _names(turn.tool_calls) if turn.tool_calls else None
    beside = tool_seconds, links.root_run_id, links.node, trace_id, links.parent_id, links.agent_id
    return (number, *_plain(turn), series, started_us, calls, *beside)


class StoredTurn(TurnRecord):
    """A record as the store holds it, with what the store knows beside it.

    Attributes:
        number: the row's id; grows in the order of writing.
        root_run_id: the agent run it belongs to (its own run where nothing says otherwise).
        node: graph node that made the call.
        trace_id: hex id of its OpenTelemetry trace.
        parent_id: nearest span around the call.
        agent_id: run of the graph that made the call, where that is not the whole invocation's.
    """

    number: int
    root_run_id: str | None = None
    node: str | None = None
    trace_id: str | None = None
    parent_id: str | None = None
    agent_id: str | None = None

    @property
    def started_us(self) -> int:
        """Start, microseconds since the epoch."""
        return to_microseconds(self.started_at)


def turn_of(row: Mapping[str, Any]) -> StoredTurn:
    """From a row of ``turns JOIN series``, by column name.

    Another version or another program may have written it: columns that are missing or hold what they should not are
    unknown, columns that no record has are left alone, and no row fails the page that shows it.
    """
    values: dict[str, Any] = {name: text(row.get(name)) for name in _TEXTS}
    values |= {count.field: whole_number(row.get(count.field)) for count in COUNTS}
    values |= {time.field: number(row.get(time.field)) for time in TIMES}
    for name in _NEVER_EMPTY:
        values[name] = values[name] or UNREADABLE
    values["number"] = row["id"]
    values["record_version"] = whole_number(row.get("record_version")) or 0
    values["turn_index"] = whole_number(row.get("turn_index")) or 0
    values["started_at"] = from_microseconds(started_us if isinstance(started_us := row.get("started_us"), int) else 0)
    values["tool_seconds_before"] = number(row.get("tool_seconds_before"))
    values["tool_calls"] = _tool_names(row.get("tool_calls"))
    values["aborted"] = row.get("aborted") == 1
    values["emulated"] = None if row.get("emulated") is None else bool(row["emulated"])
    return StoredTurn.model_construct(**values)  # each value was checked above


def _tool_names(packed: Any) -> tuple[str, ...]:
    """The names that a turn called; none where the column holds no list of names."""
    try:
        names = json.loads(packed) if packed else ()
    except (ValueError, TypeError):
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def text(value: Any) -> str | None:
    """What a text column holds; ``None`` where it is empty."""
    if value is None or type(value) is str:
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(value: Any) -> float | None:
    """What a column of seconds holds; ``None`` where that is no number of seconds."""
    return value if isinstance(value, int | float) and 0 <= value <= LARGEST else None


def finite_score(value: object) -> float | None:
    """What a column of scores holds; ``None`` where that is no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def whole_number(value: Any) -> int | None:
    """What a column of counts holds; ``None`` where that is no count."""
    return int(value) if isinstance(value, int | float) and 0 <= value <= LARGEST else None
