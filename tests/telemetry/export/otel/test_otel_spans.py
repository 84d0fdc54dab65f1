"""Spans of an agent's run: one trace, right parents, right times, the conventions' names; errors, outer spans."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telemetry_help import at, make_turn
from test_callbacks import INPUT, graph_calling

from mixquant_agents.telemetry import QueueRecorder, RunLink, Span, SpanKind, TurnContent
from mixquant_agents.telemetry.callbacks import TelemetryCallback
from mixquant_agents.telemetry.export.otel.spans import SpanSink
from mixquant_agents.telemetry.store.rows import to_microseconds


@pytest.fixture
def exported() -> tuple[QueueRecorder, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return QueueRecorder([SpanSink(SimpleSpanProcessor(exporter))]), exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def a_run(recorder: QueueRecorder, **outer: Any) -> None:
    """As callbacks and chat model report it: the children first."""
    recorder.link(RunLink("call", "root", "model", "node", **outer))
    recorder.record(make_turn(10, run_id="call", turn_index=2))
    recorder.record_span(
        Span(kind=SpanKind.TOOL, name="search", span_id="tool", parent_id="node", run_id="root", thread_id="thread",
             started_at=at(11), seconds=0.5, call_id="c1", **outer)
    )  # fmt: skip
    recorder.record_span(
        Span(kind=SpanKind.NODE, name="model", span_id="node", parent_id="root", run_id="root", started_at=at(9),
             seconds=3, **outer)
    )  # fmt: skip
    recorder.record_span(
        Span(kind=SpanKind.AGENT, name="agent", span_id="root", run_id="root", started_at=at(8), seconds=5, **outer)
    )
    recorder.close()


def test_trace_is_one_tree(exported: tuple[QueueRecorder, InMemorySpanExporter]) -> None:
    recorder, exporter = exported
    a_run(recorder)
    spans = by_name(exporter)
    chat, tool = spans["chat model"], spans["execute_tool search"]
    node, agent = spans["node model"], spans["invoke_agent agent"]
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert len({span.context.span_id for span in spans.values()}) == 4
    assert agent.parent is None
    assert node.parent is not None
    assert node.parent.span_id == agent.context.span_id
    for child in (chat, tool):
        assert child.parent is not None
        assert child.parent.span_id == node.context.span_id
    assert chat.start_time == to_microseconds(at(10)) * 1000
    assert (chat.end_time or 0) - chat.start_time == 550_000_000
    assert chat.events[0].timestamp - chat.start_time == 43_000_000
    wanted = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "model", "gen_ai.conversation.id": "thread",
        "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 51,
        "gen_ai.usage.cache_read.input_tokens": 800, "gen_ai.response.time_to_first_chunk": 0.043,
        "mixquant.policy": "exact", "mixquant.turn.index": 2, "llm.token_count.prompt_details.cache_read": 800,
        "openinference.span.kind": "LLM", "langgraph.node": "model",
    }  # fmt: skip
    assert wanted.items() <= dict(chat.attributes or {}).items()
    assert None not in (chat.attributes or {}).values()
    assert dict(tool.attributes or {})["gen_ai.tool.call.id"] == "c1"
    assert dict(agent.attributes or {})["gen_ai.operation.name"] == "invoke_agent"


def test_outer_span_is_continued(exported: tuple[QueueRecorder, InMemorySpanExporter]) -> None:
    recorder, exporter = exported
    a_run(recorder, trace_context={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    spans = by_name(exporter)
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {"ab" * 16}
    parent = spans["invoke_agent agent"].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == "cd" * 8


def test_trace_that_the_application_does_not_sample_is_not_exported(
    exported: tuple[QueueRecorder, InMemorySpanExporter],
) -> None:
    recorder, exporter = exported
    a_run(recorder, trace_context={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00"})
    assert not exporter.get_finished_spans()
    assert recorder.problem is None


@pytest.mark.parametrize("header", ["", "rubbish", "00-zz-yy-01", f"00-{'0' * 32}-{'0' * 16}-00"])
def test_malformed_header_starts_a_trace_of_its_own(
    exported: tuple[QueueRecorder, InMemorySpanExporter], header: str
) -> None:
    recorder, exporter = exported
    recorder.record(make_turn(), trace_context={"traceparent": header})
    recorder.close()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id


def test_errors_and_cancellations(exported: tuple[QueueRecorder, InMemorySpanExporter]) -> None:
    recorder, exporter = exported
    recorder.record(make_turn(error="EngineDeadError: it died"))
    recorder.record_span(
        Span(
            kind=SpanKind.TOOL,
            name="t",
            span_id="t",
            started_at=at(0),
            seconds=1,
            error="the tool answered with an error",
        )
    )
    recorder.record_span(
        Span(kind=SpanKind.RETRIEVAL, name="r", span_id="r", started_at=at(0), seconds=1, cancelled=True)
    )
    recorder.close()
    spans = by_name(exporter)
    assert not spans["chat model"].status.is_ok
    assert dict(spans["chat model"].attributes or {})["error.type"] == "EngineDeadError"
    assert dict(spans["execute_tool t"].attributes or {})["error.type"] == "tool_error"
    assert spans["retrieval r"].status.is_ok
    assert dict(spans["retrieval r"].attributes or {})["mixquant.cancelled"] is True


def test_messages_are_exported_only_with_content_recording() -> None:
    content = TurnContent(
        messages=[{"role": "user", "content": "hello"}, {"role": "tool", "tool_call_id": "c", "content": "42"}],
        answer={
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "d", "function": {"name": "f", "arguments": "{}"}}],
        },
    )
    for on in (False, True):
        exporter = InMemorySpanExporter()
        recorder = QueueRecorder([SpanSink(SimpleSpanProcessor(exporter))], content=on)
        recorder.record(make_turn(), content=content)
        recorder.close()
        attributes = dict(exporter.get_finished_spans()[0].attributes or {})
        assert ("gen_ai.input.messages" in attributes) is on
        if on:
            said = json.loads(str(attributes["gen_ai.input.messages"]))
            assert said[1]["parts"][0] == {"type": "tool_call_response", "id": "c", "response": "42"}
            answer = json.loads(str(attributes["gen_ai.output.messages"]))
            assert answer[0]["parts"][0]["name"] == "f"


async def test_real_graph_inside_an_application_span(exported: tuple[QueueRecorder, InMemorySpanExporter]) -> None:
    recorder, exporter = exported
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with trace.use_span(provider.get_tracer("app").start_span("request"), end_on_exit=True) as outer:
        await graph_calling(("slow_add", {"a": 1, "b": 2})).ainvoke(INPUT, {"callbacks": [TelemetryCallback(recorder)]})
    recorder.close()
    spans = by_name(exporter)
    agent = spans["invoke_agent LangGraph"]
    assert agent.parent is not None
    assert agent.parent.span_id == outer.get_span_context().span_id
    assert {span.context.trace_id for span in spans.values()} == {outer.get_span_context().trace_id}
    assert "execute_tool slow_add" in spans


class _Down(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise ConnectionError("the collector is down")

    def shutdown(self) -> None:
        raise ConnectionError("still down")


def test_collector_that_is_down_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    recorder = QueueRecorder([SpanSink(_Down())])
    for _ in range(5):
        recorder.record(make_turn())
    assert recorder.flush(5)
    recorder.close()
