"""A sink that hangs holds up no other, loses no more than it must, and is caught up with."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from telemetry_help import at, make_turn

from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder, sink_thread
from mixquant_agents.telemetry.events import Event, TurnEvent
from mixquant_agents.telemetry.export.otel.spans import SpanSink
from mixquant_agents.telemetry.sink_thread import SinkThread
from mixquant_agents.telemetry.store import TurnStore


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(sink_thread, "CLOSE_SECONDS", 0.1)


class Hanging:
    """A sink that waits before each write until it may go on."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.written = 0
        self.closed = False

    def write(self, batch: Sequence[Event]) -> None:
        self.may.wait(60)
        self.written += len(batch)

    def retry_seconds(self) -> float | None:
        return None

    def lost(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    sink = Hanging()
    yield sink
    sink.may.set()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_store_goes_on_beside_a_sink_that_hangs(path: Path, hanging: Hanging) -> None:
    recorder = StoreRecorder(path, sinks=[hanging], gather_seconds=0)
    for n in range(5):
        recorder.record(make_turn(n))
        until(lambda n=n: path.exists() and len(TurnStore(path).turns()) == n + 1)
    assert recorder.problem is not None
    assert "Hanging takes longer than" in recorder.problem
    assert not recorder.flush(0.1), "one sink has not written"
    hanging.may.set()
    assert recorder.flush(20)
    assert (hanging.written, recorder.dropped, recorder.problem) == (5, 0, None)
    recorder.record(make_turn())
    assert recorder.flush(20)
    assert hanging.written == 6
    recorder.close()
    assert hanging.closed


def test_closing_leaves_a_sink_that_hangs_behind(
    path: Path, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = StoreRecorder(path, sinks=[hanging], gather_seconds=0)
    recorder.record(make_turn())
    begun = time.monotonic()
    recorder.close()
    assert time.monotonic() - begun < 5
    assert len(TurnStore(path).turns()) == 1
    assert recorder.dropped == 1
    assert "Hanging takes longer than 0.1 s to close; up to 1 of its events are lost" in caplog.text


def test_what_waits_for_a_late_sink_is_bounded(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "_WEIGHT_LIMIT", 300)
    sink = SinkThread(hanging)
    long = TurnEvent(turn=make_turn(), prompt_token_ids=range(100_000))
    for _ in range(6):
        with pytest.raises(TimeoutError):
            sink.write([long])
    assert sink.lost() == 4, "an event of 100,000 tokens weighs 101"
    assert sink.retry_seconds() is not None
    hanging.may.set()

    def caught_up() -> bool:
        with contextlib.suppress(TimeoutError):
            sink.write([])
        return sink.retry_seconds() is None

    until(caught_up)
    sink.write([long])
    assert (hanging.written, sink.lost(), sink.retry_seconds()) == (3, 4, None)
    sink.close()


def test_sink_takes_a_batch_where_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch, hanging: Hanging) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    hanging.may.set()
    sink = SinkThread(hanging)
    sink.write([make_span()])
    sink.close()
    assert (hanging.written, hanging.closed) == (1, True)


def make_span() -> Event:
    return Span(span_id="s", kind=SpanKind.TOOL, name="t", started_at=at(0), seconds=1.0)


class Exporter(SpanExporter):
    """Exports after ``release``: a collector that does not answer."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.spans: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.release.wait(60)
        self.spans += [span.name for span in spans]
        return SpanExportResult.SUCCESS


def test_collector_that_does_not_answer_holds_up_no_store(path: Path) -> None:
    exporter = Exporter()
    recorder = StoreRecorder(path, sinks=[SpanSink(SimpleSpanProcessor(exporter))], gather_seconds=0)
    try:
        for n in range(20):
            recorder.record(make_turn(n))
        until(lambda: path.exists() and len(TurnStore(path).turns()) == 20)
    finally:
        exporter.release.set()
    assert recorder.flush(20)
    assert len(exporter.spans) == 20
    recorder.record(make_turn(30))
    recorder.close()
    assert any(turn.trace_id is not None for turn in TurnStore(path).turns()), "sinks take a batch in order again"
    assert recorder.dropped == 0
