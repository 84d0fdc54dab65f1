"""What :class:`~mixquant_agents.telemetry.store.reader.TurnStore` finds besides turns."""

from __future__ import annotations

from dataclasses import dataclass

from mixquant_agents.telemetry.events import SpanKind

__all__ = ["Series", "StoredScore", "StoredSpan", "ThreadSummary"]


@dataclass(frozen=True, slots=True)
class Series:
    """What turns have in common: one line of table ``series``."""

    id: int
    model: str
    engine: str
    policy: str
    prefill_format: str | None
    decode_format: str | None
    emulated: bool | None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class ThreadSummary:
    """One thread in the list. Tokens and seconds are sums of what is known.

    Attributes:
        bad: turns that failed or were aborted.
        failed_turns: those of them that failed.
        failed_tools: tool calls that raised or answered with an error. Agents often go on after one, so it is counted
            beside the turns.
        failed_runs: runs of the whole agent that ended with an error.
        question: what its first recorded turn was asked; ``None`` where content was not recorded.
        score: mean of its scores; ``None`` where it has none.
    """

    thread_id: str
    turns: int
    bad: int
    first_at: str
    last_at: str
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int
    total_seconds: float
    policies: tuple[str, ...]
    models: tuple[str, ...]
    question: str | None = None
    score: float | None = None
    failed_turns: int = 0
    failed_tools: int = 0
    failed_runs: int = 0


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score of a thread. Attributes as in :class:`~mixquant_agents.telemetry.events.Score`.

    Attributes:
        at_us: start of the thread's last turn, microseconds since the epoch.
        series: ids of the series that the thread's turns are of.
    """

    thread_id: str
    name: str
    score: float
    at_us: int
    series: tuple[int, ...]
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A tool call, graph node or agent run. Attributes as in :class:`~mixquant_agents.telemetry.events.Span`.

    Attributes:
        kind: any text where another version wrote it.
    """

    span_id: str
    parent_id: str | None
    run_id: str | None
    thread_id: str | None
    kind: SpanKind | str
    name: str
    started_us: int
    seconds: float
    cancelled: bool
    error: str | None
    arguments: str | None
    result: str | None
