"""OpenTelemetry: spans and metrics by the GenAI conventions (status: development), made after the fact.

Spans ``invoke_agent``, ``execute_tool``, ``retrieval`` and ``chat`` form one trace per agent run. They are built in the
recorder's thread when a turn or tool has ended, so they cost a turn nothing; ids follow from the LangChain run ids, so
children can name parents that have not ended yet. Where the application has a span of its own around the agent
(``traceparent``), the trace continues it, and is exported only where the application samples it.

Beside the conventions' attributes a turn's span carries ours (``mixquant.*``) and, for Arize Phoenix and other readers
of OpenInference, that vocabulary's names for kind, tokens and cache reads.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from mixquant_agents._version import __version__
from mixquant_agents.errors import MissingDependencyError
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import Event, RunLink, Span, SpanKind, TurnEvent
from mixquant_agents.telemetry.export.otel.attributes import agent_attributes, chat_attributes, tool_attributes
from mixquant_agents.telemetry.export.sink import ExportSink, clean_text
from mixquant_agents.telemetry.store.rows import to_microseconds

try:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event as SpanEvent
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
    from opentelemetry.trace import SpanKind as OtelKind
except ImportError as missing:
    raise MissingDependencyError(
        "OpenTelemetry spans need opentelemetry-sdk: pip install 'mixquant-agents[dashboard]'"
    ) from missing

__all__ = ["SpanSink", "otlp_span_sink"]

LINK_LIMIT = 8_192
SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class SpanSink(ExportSink):
    """Turns events into spans for a processor or an exporter.

    Args:
        target: a span processor (for example of an existing tracer provider's pipeline), or an exporter, which then
            gets a batching processor of its own. While a processor that waits for its exporter
            (``SimpleSpanProcessor``) hangs, the recorder's other sinks go on; the store's turns of that time have no
            ``trace_id``.
        service: the resource's ``service.name``.
    """

    def __init__(self, target: SpanProcessor | SpanExporter, *, service: str = "mixquant-agents") -> None:
        self._processor = target if isinstance(target, SpanProcessor) else BatchSpanProcessor(target)
        self._resource = Resource.create({"service.name": service})
        self._scope = InstrumentationScope("mixquant_agents", __version__)
        self._links: OrderedDict[str, RunLink] = OrderedDict()

    def take(self, event: Event) -> None:
        """Make and hand over the span of an event. The processor retries, and counts what it drops, by itself."""
        if isinstance(event, RunLink):
            self._links[event.run_id] = event
            if len(self._links) > LINK_LIMIT:
                self._links.popitem(last=False)
        elif isinstance(event, TurnEvent):
            self._turn(event)
        elif isinstance(event, Span):
            self._span(event)

    def close(self) -> None:
        """Hand over what is left."""
        self._processor.shutdown()

    def _turn(self, event: TurnEvent) -> None:
        turn = event.turn
        link = self._links.pop(turn.run_id, None) if turn.run_id is not None else None
        outer = _parent_of(link.trace_context if link is not None else event.trace_context)
        trace = (
            outer.trace_id
            if outer is not None
            else _trace_id(link.root_run_id if link else turn.run_id or turn.turn_id)
        )
        parent, flags = outer, outer.trace_flags if outer is not None else SAMPLED
        if link is not None and link.parent_id is not None:
            parent = _context(trace, _span_id(link.parent_id), flags)
        start = to_microseconds(turn.started_at) * 1000
        ttft = turn.ttft_seconds if turn.ttft_seconds is not None and math.isfinite(turn.ttft_seconds) else None
        total = turn.total_seconds if turn.total_seconds is not None and math.isfinite(turn.total_seconds) else ttft
        events = [] if ttft is None else [SpanEvent("gen_ai.first_token", timestamp=start + round(ttft * 1e9))]
        event.trace_id = f"{trace:032x}"
        self._emit(
            f"chat {turn.model}",
            _context(trace, _span_id(turn.run_id or turn.turn_id), flags),
            parent,
            _kind_of(turn),
            chat_attributes(event, link.node if link is not None else None),
            start,
            total or 0.0,
            turn.error,
            events,
        )

    def _span(self, span: Span) -> None:
        outer = _parent_of(span.trace_context)
        trace = outer.trace_id if outer is not None else _trace_id(span.run_id or span.span_id)
        flags = outer.trace_flags if outer is not None else SAMPLED
        parent = _context(trace, _span_id(span.parent_id), flags) if span.parent_id is not None else outer
        if span.kind is SpanKind.AGENT:
            name, attributes = f"invoke_agent {span.name}", agent_attributes(span)
        elif span.kind is SpanKind.NODE:
            name, attributes = f"node {span.name}", agent_attributes(span)
        elif span.kind is SpanKind.TOOL:
            name, attributes = f"execute_tool {span.name}", tool_attributes(span)
        else:
            name, attributes = f"retrieval {span.name}", tool_attributes(span)
        start = to_microseconds(span.started_at) * 1000
        context = _context(trace, _span_id(span.span_id), flags)
        self._emit(name, context, parent, OtelKind.INTERNAL, attributes, start, span.seconds, span.error, [])

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: OtelKind,
        attributes: Mapping[str, Any],
        start_ns: int,
        seconds: float,
        error: str | None,
        events: Sequence[SpanEvent],
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                clean_text(name),
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                events=events,
                kind=kind,
                status=Status(StatusCode.ERROR, clean_text(error)) if error is not None else Status(),
                start_time=start_ns,
                end_time=start_ns + round(seconds * 1e9),
                instrumentation_scope=self._scope,
            )
        )


def otlp_span_sink(endpoint: str = "http://127.0.0.1:4318/v1/traces", *, service: str = "mixquant-agents") -> SpanSink:
    """Spans over OTLP/HTTP, for a collector, Phoenix, Langfuse or any other that takes OTLP.

    Raises:
        MissingDependencyError: the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise MissingDependencyError(
            "OTLP needs its exporter: pip install opentelemetry-exporter-otlp-proto-http"
        ) from missing
    return SpanSink(OTLPSpanExporter(endpoint=endpoint), service=service)


def _kind_of(turn: TurnRecord) -> OtelKind:
    """The conventions' span kind: internal where the model runs in this process, else a client's. An engine of this
    process reads its own clock, or at least knows its device."""
    return OtelKind.INTERNAL if turn.timing_source == "engine" or turn.device is not None else OtelKind.CLIENT


def _number(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big") or 1


def _trace_id(root: str) -> int:
    return _number(root, 16)


def _span_id(run: str) -> int:
    return _number(run, 8)


def _context(trace: int, span: int, flags: TraceFlags) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=flags)


def _parent_of(headers: Mapping[str, str] | None) -> SpanContext | None:
    """The span that W3C ``traceparent`` names; ``None`` where it is missing or malformed."""
    if not headers:
        return None
    parts = headers.get("traceparent", "").split("-")
    try:
        trace, span, flags = int(parts[1], 16), int(parts[2], 16), TraceFlags(int(parts[3], 16))
    except (IndexError, ValueError):
        return None
    return SpanContext(trace, span, is_remote=True, trace_flags=flags) if trace and span else None
