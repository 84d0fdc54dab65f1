"""What a recorder is handed: turns with what goes with them, spans (tools, graph nodes, whole agents), links of runs,
and scores.

Plain data, cheap to make on the turn's own path; everything costly (hashing, JSON, SQL, spans, histograms) happens
later, in the recorder's thread. Nothing here imports langchain, OpenTelemetry or Prometheus.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixquant_agents.records import TurnRecord, utc_now

__all__ = [
    "TOOL_ERROR",
    "Event",
    "RunLink",
    "Score",
    "Span",
    "SpanKind",
    "TurnContent",
    "TurnEvent",
    "error_class",
    "without_content",
]

TOOL_ERROR = "the tool answered with an error"
"""The error of a tool that did not raise, but said that it failed."""
_CLASS = re.compile(r"[^\W\d][\w.]*", re.ASCII)


class SpanKind(enum.StrEnum):
    """What a span timed."""

    AGENT = "agent"
    """One whole run of a graph or chain; a graph inside another one, such as a sub-agent, too."""
    NODE = "node"
    """One node of a graph."""
    TOOL = "tool"
    """One tool call."""
    RETRIEVAL = "retrieval"
    """One call of a retriever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnContent:
    """What was said in a turn. Only made and kept where content recording was switched on.

    Attributes:
        messages: the input, OpenAI shape.
        answer: the answer, OpenAI shape: ``{"role", "content", "reasoning_content"?, "tool_calls"?}``.
        prompt_text: the rendered prompt, when the engine gives it; lets a prefix miss be shown in the exact text.
        problem: why what was recorded cannot be read again; only set by a reader.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    answer: Mapping[str, Any] | None = None
    prompt_text: str | None = None
    problem: str | None = None


@dataclass(slots=True, kw_only=True)
class TurnEvent:
    """A turn and what goes with it.

    Attributes:
        turn: the record.
        content: see :class:`TurnContent`; dropped unless content recording is on.
        prompt_token_ids: the rendered prompt's tokens. Never stored: salted block hashes of them are.
        block_hashes: 64-bit rolling hashes, one per full block of 16 prompt tokens, where the caller has them already.
        trace_context: W3C headers (``traceparent``) of the span this turn belongs to.
        parent_run_id: LangChain run that made this call.
        trace_id: hex id of the turn's trace; filled by the span sink, read by the metrics (exemplars) and the store.
    """

    turn: TurnRecord
    content: TurnContent | None = None
    prompt_token_ids: Sequence[int] | None = None
    block_hashes: Sequence[int] | None = None
    trace_context: Mapping[str, str] | None = None
    parent_run_id: str | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A timed piece of work around the turns.

    Attributes:
        span_id: id of the LangChain run that this span timed.
        parent_id: id of the run it ran inside; ``None`` at the root.
        run_id: id of the root run (one invocation of an agent).
        started_at: UTC, ISO 8601.
        seconds: duration by the monotonic clock.
        error: one line, when it failed.
        cancelled: it was interrupted rather than finished.
        call_id: id of the tool call that the model made.
        arguments, result: text; only with content recording on.
        agent_id: as in :class:`RunLink`.
        trace_context: as in :class:`RunLink`.
    """

    kind: SpanKind
    name: str
    span_id: str
    started_at: str
    seconds: float
    parent_id: str | None = None
    run_id: str | None = None
    thread_id: str | None = None
    error: str | None = None
    cancelled: bool = False
    call_id: str | None = None
    arguments: str | None = None
    result: str | None = None
    agent_id: str | None = None
    trace_context: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RunLink:
    """Says which agent run and graph node a model call belongs to; precedes the turn of the same ``run_id``.

    Attributes:
        run_id: LangChain run of the model call: the ``run_id`` in its :class:`TurnRecord`.
        root_run_id: run of the whole invocation.
        node: name of the graph node, if any.
        parent_id: nearest span around the call.
        trace_context: W3C headers of the span around the whole invocation, if the caller had one.
        agent_id: run of the graph that called the model. Tools and turns of one graph follow each other; those of
            another, which may run beside it (sub-agents), do not. ``None``: the graph of the whole invocation.
    """

    run_id: str
    root_run_id: str
    node: str | None = None
    parent_id: str | None = None
    trace_context: Mapping[str, str] | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a benchmark, a judge or a person said of a thread's answer.

    Attributes:
        thread_id: the thread that is scored; its turns say under which policy it ran.
        name: what is scored, for example a suite. A later score of the same thread and name replaces it.
        score: any finite number; benchmarks give 0 to 1.
        scored_at: UTC, ISO 8601.
        comment: why, in one line; only with content recording on.
    """

    thread_id: str
    name: str
    score: float
    scored_at: str = field(default_factory=utc_now)
    comment: str | None = None


Event = TurnEvent | Span | RunLink | Score


def error_class(error: str) -> str:
    """What may be kept of an error where content is not recorded: the name of its class. What follows may quote the
    prompt, a tool's input, or what a server echoes."""
    name = error.split(":", 1)[0]
    return error if error == TOOL_ERROR else name if _CLASS.fullmatch(name) else "error"


def without_content(event: Event) -> Event:
    """The event without what was said: no messages, arguments or results, and of an error only its class."""
    if isinstance(event, TurnEvent):
        if event.turn.error is not None:
            event.turn = event.turn.model_copy(update={"error": error_class(event.turn.error)})
        event.content = None
        return event
    if isinstance(event, Score):
        return replace(event, comment=None)
    if isinstance(event, RunLink) or (event.error is None and event.arguments is None and event.result is None):
        return event
    error = None if event.error is None else error_class(event.error)
    return replace(event, error=error, arguments=None, result=None)
