"""Which turns a question is about, as one frozen value: the store turns it into SQL, the dashboard into a URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry.store.rows import to_microseconds

__all__ = ["TurnFilter"]

Status = Literal["ok", "bad", "failed", "aborted"]
_STATUS = {
    "ok": "turns.aborted = 0 AND turns.error IS NULL",
    "bad": "(turns.aborted = 1 OR turns.error IS NOT NULL)",
    "failed": "turns.error IS NOT NULL",
    "aborted": "turns.aborted = 1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFilter:
    """All given conditions hold together; ``None`` sets none.

    Attributes:
        thread: LangGraph thread.
        run: an agent's run, or the run of a single call.
        model, policy, engine: exact names.
        since, until: UTC instants, ISO 8601; ``since`` included, ``until`` not.
        status: ``ok``, ``failed``, ``aborted``, or ``bad`` (either of the two).
    """

    thread: str | None = None
    run: str | None = None
    model: str | None = None
    policy: str | None = None
    engine: str | None = None
    since: str | None = None
    until: str | None = None
    status: Status | None = None

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in _STATUS:
            raise RequestError(f"status {self.status!r} is none of {', '.join(_STATUS)}")
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None:
                try:
                    to_microseconds(value)
                except (ValueError, TypeError) as error:
                    raise RequestError(
                        f"{name} {value!r} is not an ISO 8601 instant such as 2026-01-31T12:00:00Z"
                    ) from error

    @property
    def since_us(self) -> int | None:
        """Microseconds since the epoch."""
        return None if self.since is None else to_microseconds(self.since)

    @property
    def until_us(self) -> int | None:
        """Microseconds since the epoch."""
        return None if self.until is None else to_microseconds(self.until)

    @property
    def by_series(self) -> bool:
        """Whether roll-ups can answer: no condition is finer than model, policy, engine, time and outcome."""
        return self.thread is None and self.run is None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TurnFilter:
        """From URL parameters; names that are no filter are left aside, empty values set none.

        Raises:
            RequestError: a value is not what its name asks for.
        """
        return cls(**{field.name: values[field.name] for field in fields(cls) if values.get(field.name)})

    def as_mapping(self) -> dict[str, str]:
        """The conditions that are set, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def where(self, series: list[int] | None) -> tuple[str, list[Any]]:
        """``(SQL condition over table turns, its values)``. ``series``: ids to which model, policy and engine boil
        down; ``None`` for all."""
        parts: list[str] = []
        values: list[Any] = []
        if series is not None:
            parts.append(f"turns.series_id IN ({', '.join('?' * len(series))})")
            values.extend(series)
        if self.thread is not None:
            parts.append("turns.thread_id = ?")
            values.append(self.thread)
        if self.run is not None:
            parts.append("(turns.root_run_id = ? OR turns.run_id = ?)")
            values.extend((self.run, self.run))
        if self.since_us is not None:
            parts.append("turns.started_us >= ?")
            values.append(self.since_us)
        if self.until_us is not None:
            parts.append("turns.started_us < ?")
            values.append(self.until_us)
        if self.status is not None:
            parts.append(_STATUS[self.status])
        return " AND ".join(parts) or "1", values
