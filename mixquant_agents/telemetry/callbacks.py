"""LangChain callbacks that time what happens around the turns: tools, retrievers, graph nodes, whole agent runs.

::

    recorder = StoreRecorder("turns.sqlite")
    graph.invoke(inputs, {"callbacks": [TelemetryCallback(recorder)], "configurable": {"thread_id": "t1"}})

    with observing(recorder):     # or: everything called in here, without passing callbacks along
        graph.invoke(…)

The turns themselves are recorded by the chat model; this handler only says which run and node each belongs to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.tracers.context import register_configure_hook

from mixquant_agents.records import utc_now
from mixquant_agents.telemetry.events import TOOL_ERROR, RunLink, Span, SpanKind
from mixquant_agents.telemetry.plain import text_of
from mixquant_agents.telemetry.recorder import Recorder
from mixquant_agents.telemetry.trace_context import active_trace_context

__all__ = ["TelemetryCallback", "observing"]

log = logging.getLogger(__name__)

ROOT_LIMIT = 4_096
"""Most agent runs followed at once; beyond it the oldest (whose end was never reported) is forgotten."""
TEXT_LIMIT = 20_000
"""Longest tool argument or result that is kept, characters."""


@dataclass(slots=True)
class _Run:
    """A run that has begun. ``span``: what to record at its end; ``None`` for one that only passes ids on."""

    root: _Run | None
    parent: _Run | None
    run_id: str
    kind: SpanKind | None = None
    name: str = ""
    thread: str | None = None
    node: str | None = None
    call_id: str | None = None
    arguments: str | None = None
    trace_context: Mapping[str, str] | None = None
    began: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    children: dict[str, _Run] = field(default_factory=dict)

    @property
    def top(self) -> _Run:
        return self.root or self

    def begin(self) -> None:
        """It begins now."""
        self.began, self.started_at = time.monotonic(), utc_now()

    def agent(self) -> str | None:
        """Id of the graph that runs this: the run around the nearest node; ``None``: that of the whole invocation."""
        run: _Run | None = self
        while run is not None and run.kind is not SpanKind.NODE:
            run = run.parent
        graph = run.parent if run is not None else None
        return None if graph is None or graph is self.top else graph.run_id

    def around(self) -> str | None:
        """Id of the nearest recorded span around this run."""
        run = self.parent
        while run is not None and run.kind is None:
            run = run.parent
        return run.run_id if run is not None else None


class TelemetryCallback(BaseCallbackHandler):
    """Times tools, retrievers, graph nodes and agent runs into a recorder. One handler may serve many runs at once.

    Args:
        recorder: where spans and links go. Arguments and results are only kept if it records content.
    """

    run_inline = True  # in async runs too: a hop to a thread pool would cost more than the handler itself
    raise_error = False
    ignore_llm = True  # or it would be asked about every new token
    ignore_custom_event = True

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._runs: dict[str, _Run] = {}
        self._roots: dict[str, _Run] = {}
        self._failed = False

    # --- beginnings

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = kwargs.get("name") or (serialized or {}).get("name") or "agent"
        kind = None
        if parent_run_id is None or str(parent_run_id) not in self._runs:
            kind = SpanKind.AGENT
        elif any(tag.startswith("graph:step:") for tag in tags or ()):
            kind = SpanKind.NODE
        self._begin(run_id, parent_run_id, kind, str(name), metadata)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = (serialized or {}).get("name") or kwargs.get("name") or "tool"
        run = self._begin(run_id, parent_run_id, SpanKind.TOOL, str(name), metadata)
        run.call_id = kwargs.get("tool_call_id")
        _begin_with_its_code(run)
        if self.recorder.wants_content:
            run.arguments = _text(input_str)

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = kwargs.get("name") or (serialized or {}).get("name") or "retriever"
        run = self._begin(run_id, parent_run_id, SpanKind.RETRIEVAL, str(name), metadata)
        if self.recorder.wants_content:
            run.arguments = _text(query)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        parent = self._runs.get(str(parent_run_id)) if parent_run_id is not None else None
        if parent is None:
            return  # a bare call: its turn is its own root
        around = parent.run_id if parent.kind is not None else parent.around()
        node = (metadata or {}).get("langgraph_node") or parent.node
        link = RunLink(str(run_id), parent.top.run_id, node, around, parent.top.trace_context, parent.agent())
        self._hand_over(self.recorder.link, link)

    # --- ends

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error=error)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        said_error = getattr(output, "status", None) == "error"
        self._end(
            run_id,
            result=getattr(output, "content", output),
            problem=TOOL_ERROR if said_error else None,
        )

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error=error)

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, result=[getattr(document, "page_content", document) for document in documents])

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, error=error)

    # --- both

    def _begin(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        kind: SpanKind | None,
        name: str,
        metadata: dict[str, Any] | None,
    ) -> _Run:
        parent = self._runs.get(str(parent_run_id)) if parent_run_id is not None else None
        thread = (metadata or {}).get("thread_id", parent.thread if parent is not None else None)
        if kind is SpanKind.NODE and parent is not None and parent.kind is None:
            parent.kind = SpanKind.AGENT  # what has nodes is a graph: here one inside another run, a sub-agent
        run = _Run(
            root=parent.top if parent is not None else None,
            parent=parent,
            run_id=str(run_id),
            kind=kind,
            name=name,
            thread=None if thread is None else str(thread),
            node=(metadata or {}).get("langgraph_node"),
        )
        if parent is None:
            run.trace_context = active_trace_context()
            self._roots[run.run_id] = run
            if len(self._roots) > ROOT_LIMIT:
                self._forget(next(iter(self._roots.values())))
        run.top.children[run.run_id] = run
        self._runs[run.run_id] = run
        return run

    def _end(
        self, run_id: UUID, *, error: BaseException | None = None, result: Any = None, problem: str | None = None
    ) -> None:
        run = self._runs.pop(str(run_id), None)
        if run is None:
            return
        top = run.top
        top.children.pop(run.run_id, None)
        if run is top:
            # Whatever inside has not ended was cancelled: LangChain does not report it.
            for child in list(top.children.values()):
                self._record(child, cancelled=True)
            self._forget(top)
        self._record(run, error=error, result=result, problem=problem)

    def _forget(self, top: _Run) -> None:
        self._roots.pop(top.run_id, None)
        for identity in (*top.children, top.run_id):
            self._runs.pop(identity, None)

    def _record(
        self,
        run: _Run,
        *,
        error: BaseException | None = None,
        result: Any = None,
        problem: str | None = None,
        cancelled: bool = False,
    ) -> None:
        if run.kind is None:
            return
        content = self.recorder.wants_content
        interrupted = isinstance(error, asyncio.CancelledError | KeyboardInterrupt | GeneratorExit) or (
            type(error).__name__ in ("GraphInterrupt", "GraphBubbleUp", "ParentCommand")  # control flow, not failures
        )
        if error is not None and not interrupted:
            # Without content recording the message stays out: it may quote what the tool was working on.
            problem = f"{type(error).__name__}: {_text(error)}"[:500] if content else type(error).__name__
        self._hand_over(
            self.recorder.record_span,
            Span(
                kind=run.kind,
                name=run.name,
                span_id=run.run_id,
                parent_id=run.around(),
                run_id=run.top.run_id,
                thread_id=run.thread,
                started_at=run.started_at,
                seconds=time.monotonic() - run.began,
                error=problem,
                cancelled=cancelled or interrupted,
                call_id=run.call_id,
                arguments=run.arguments,
                result=_text(result) if content and result is not None else None,
                agent_id=run.agent(),
                trace_context=run.top.trace_context,
            ),
        )

    def _hand_over(self, take: Callable[[Any], None], event: Any) -> None:
        """Give an event to the recorder. LangChain catches what a handler raises, but not ``SystemExit`` and its like:
        a recorder of somebody's must not end the run that it observes."""
        try:
            take(event)
        except KeyboardInterrupt:
            raise
        except BaseException:
            if not self._failed:  # logged once
                self._failed = True
                log.warning("the recorder %r failed; runs go on", self.recorder, exc_info=True)


def _begin_with_its_code(run: _Run) -> None:
    """An asynchronous tool begins when the event loop gets to it: until then other agents may run. LangChain makes its
    task right after its callbacks, so that what is scheduled here runs just before the tool's first line."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # a synchronous tool runs at once
    loop.call_soon(run.begin)


def _text(value: Any) -> str:
    """``value`` as text, cut; a value that cannot be written must not fail the run that made it."""
    return text_of(value)[:TEXT_LIMIT]


_observer: ContextVar[TelemetryCallback | None] = ContextVar("mixquant_observer", default=None)
register_configure_hook(_observer, inheritable=True)


@contextmanager
def observing(recorder: Recorder) -> Iterator[TelemetryCallback]:
    """Everything of LangChain and LangGraph that is called inside is timed into ``recorder``."""
    handler = TelemetryCallback(recorder)
    token = _observer.set(handler)
    try:
        yield handler
    finally:
        _observer.reset(token)
