"""The recorder's thread outlives whatever its sinks and hooks do; nothing that was said leaves it unasked."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from telemetry_help import at, make_turn

from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.errors import ConfigError
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry import NullRecorder, QueueRecorder, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry import recorder as recorder_module
from mixquant_agents.telemetry.events import Event, TurnEvent, error_class
from mixquant_agents.telemetry.store import TurnStore
from mixquant_agents.telemetry.store import connection as connection_module


class Leaving:
    """A sink whose methods raise what no ordinary handler catches."""

    def __init__(self, error: type[BaseException], *methods: str) -> None:
        self.error, self.methods = error, methods
        self.seen: list[str] = []

    def _do(self, method: str) -> None:
        self.seen.append(method)
        if method in self.methods:
            raise self.error("goodbye")

    def write(self, batch: Sequence[Event]) -> None:
        self._do("write")

    def retry_seconds(self) -> float | None:
        self._do("retry_seconds")
        return None

    def lost(self) -> int:
        self._do("lost")
        return 0

    def close(self) -> None:
        self._do("close")

    def before_fork(self) -> None:
        self._do("before_fork")


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class OtherBase(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, OtherBase])
@pytest.mark.parametrize("methods", [("write",), ("retry_seconds",), ("write", "retry_seconds", "lost", "close")])
def test_sink_that_leaves_ends_no_recording(path: Path, error: type[BaseException], methods: tuple[str, ...]) -> None:
    sink = Leaving(error, *methods)
    recorder = StoreRecorder(path, sinks=[sink], gather_seconds=0)
    for n in range(6):
        recorder.record(make_turn(n))
        time.sleep(0.01)
    until(lambda: recorder.problem is not None)
    assert recorder.problem == f"{error.__name__}: goodbye"
    assert recorder.dropped == 0
    recorder.close()
    assert len(TurnStore(path).turns()) == 6
    assert "close" in sink.seen


def test_hook_that_leaves_is_called_for_every_turn(caplog: pytest.LogCaptureFixture) -> None:
    from mixquant_agents.chat.recorders import Recorders

    seen: list[str] = []

    def hook(turn: Any) -> None:
        seen.append(turn.turn_id)
        raise SystemExit(3)

    recorders = Recorders([hook])
    request = EngineRequest(request_id="r", messages=[])
    for n in range(6):
        recorders.record(make_turn(turn_id=f"t{n}"), request, dict)
    recorders.close()
    assert seen == [f"t{n}" for n in range(6)]
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]


def test_recorder_that_leaves_fails_no_turn() -> None:
    from mixquant_agents.chat.recorders import Recorders

    class Foreign:
        wants_content = False

        def record(self, turn: Any, **_: Any) -> None:
            raise SystemExit(3)

        def record_span(self, span: Any) -> None: ...

        def link(self, link: Any) -> None: ...

        def flush(self, timeout: float = 5.0) -> bool:
            return True

        def close(self) -> None: ...

    Recorders([Foreign()]).record(make_turn(), EngineRequest(request_id="r", messages=[]), dict)


class Unspeakable:
    """Says nothing of itself."""

    def __str__(self) -> str:
        raise SystemExit(5)

    __repr__ = __str__


def test_event_that_leaves_holds_up_no_other(path: Path) -> None:
    recorder = StoreRecorder(path, content=True, gather_seconds=0)
    recorder.record(make_turn(1, turn_id="before"))
    recorder.record(
        make_turn(2, turn_id="odd"), content=TurnContent(messages=[{"role": "user", "content": Unspeakable()}])
    )
    recorder.record(make_turn(3, turn_id="after"))
    recorder.close()
    assert recorder.dropped == 0
    store = TurnStore(path)
    assert {turn.turn_id for turn in store.turns()} == {"before", "odd", "after"}


def end(thread: threading.Thread, wake: threading.Event) -> None:
    """End a thread as a debugger or a supervisor does. ``wake``: what it waits for, where no such exception reaches
    it."""
    assert thread.ident is not None
    for _ in range(50):  # a sink that is guarded may take one
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        wake.set()
        thread.join(0.5)
        if not thread.is_alive():
            return
    raise AssertionError("the thread goes on")


def test_ended_thread_is_replaced_and_its_events_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = StoreRecorder(path, gather_seconds=0.05)
    recorder.record(make_turn(turn_id="first"))
    assert recorder.flush()
    thread = recorder._thread
    assert thread is not None
    ending = threading.Thread(target=end, args=(thread, recorder._wake))
    ending.start()
    for n in range(20):
        recorder.record(make_turn(turn_id=f"t{n}"))
        time.sleep(0.005)
    ending.join()
    recorder.record(make_turn(turn_id="last"))
    assert recorder.flush()
    assert recorder._thread is not thread
    recorder.close()
    store = TurnStore(path)
    assert store.turn("last") is not None
    assert len(store.turns()) + recorder.dropped == 22
    assert any("was ended by SystemExit" in entry.getMessage() for entry in caplog.records)


def test_flush_and_close_write_what_an_ended_thread_left(path: Path) -> None:
    for finish in (QueueRecorder.flush, QueueRecorder.close):
        recorder = StoreRecorder(path, gather_seconds=0)
        recorder.record(make_turn())
        assert recorder.flush()
        assert recorder._thread is not None
        end(recorder._thread, recorder._wake)
        turn = make_turn(turn_id=f"after-{finish.__name__}")
        recorder._queue.append(TurnEvent(turn=turn))  # it waited when the thread was ended
        finish(recorder)
        assert TurnStore(path).turn(turn.turn_id) is not None
        recorder.close()


class SlowSink:
    """Takes its time for each write; for ever, where it is ``stuck``."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.written = seconds, 0
        self.go_on = threading.Event()

    def write(self, events: list[Any]) -> None:
        self.go_on.wait(self.seconds)
        self.written += len(events)

    def retry_seconds(self) -> None: ...

    def lost(self) -> int:
        return 0

    def close(self) -> None: ...


def test_close_waits_while_it_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_BATCH", 1)
    monkeypatch.setattr(recorder_module, "_STUCK_SECONDS", 0.3)
    recorder = QueueRecorder([sink := SlowSink(0.05)], gather_seconds=0)
    for number in range(20):
        recorder.record(make_turn(number))
    recorder.close()
    assert sink.written == 20


def test_close_gives_up_a_sink_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_STUCK_SECONDS", 0.05)
    recorder = QueueRecorder([sink := SlowSink(30)], gather_seconds=0)
    recorder.record(make_turn())
    recorder.close()
    assert sink.written == 0
    sink.go_on.set()


def test_closing_says_what_may_be_unwritten(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(recorder_module, "_STUCK_SECONDS", 0.05)
    recorder = QueueRecorder([sink := SlowSink(30)], gather_seconds=0)
    recorder.record(make_turn())
    recorder.close()
    sink.go_on.set()
    assert "closed while up to 1 events were still being written" in caplog.text


def test_closing_outwaits_the_lock_of_a_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorder_module._STUCK_SECONDS * 1000 > connection_module.BUSY_MILLISECONDS
    blocker = connection_module.connect_writer(path)
    blocker.execute("BEGIN IMMEDIATE")  # another process that holds it for a minute
    monkeypatch.setattr(connection_module, "BUSY_MILLISECONDS", 50)
    recorder = StoreRecorder(path)
    for n in range(3):
        recorder.record(make_turn(n))
    recorder.close()
    blocker.close()
    assert recorder.dropped == 3, "told, not lost without a word"
    assert "another process held its lock" in (recorder.problem or "")


@pytest.mark.parametrize("ending", ["flush", "close"])
def test_turns_wait_where_no_thread_is_to_be_had(path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder = StoreRecorder(path, gather_seconds=0)
    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refused)
        recorder.record(make_turn(1, turn_id="first"))
        assert recorder.problem == "RuntimeError: can't start new thread"
        assert recorder.flush(0.1) is False
        if ending == "close":
            recorder.close()
    if ending == "flush":
        assert recorder.flush()
        assert recorder.problem is None
        recorder.close()
    assert recorder.dropped == 0
    assert [turn.turn_id for turn in TurnStore(path).turns()] == ["first"]


def test_odd_error_takes_no_other_event_along(path: Path) -> None:
    recorder = StoreRecorder(path)
    recorder.record(make_turn(1, turn_id="before"))
    recorder.record(make_turn(2).model_copy(update={"error": Unspeakable()}))
    recorder.record(make_turn(3, turn_id="after"))
    recorder.close()
    assert recorder.dropped == 1
    assert {turn.turn_id for turn in TurnStore(path).turns()} == {"before", "after"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_limit": 0},
        {"queue_limit": None},
        {"queue_limit": 1.5},
        {"gather_seconds": -1},
        {"gather_seconds": float("nan")},
        {"gather_seconds": 1e12},
        {"gather_seconds": "1"},
    ],
)
def test_settings_that_none_can_be_are_refused(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StoreRecorder(path, **wrong)


def test_recorder_that_leaves_keeps_no_model_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    from mixquant_agents.chat.recorders import Recorders

    class Foreign(NullRecorder):
        def flush(self, timeout: float = 5.0) -> bool:
            raise SystemExit(3)

    turns: list[TurnRecord] = []
    recorders = Recorders([Foreign(), turns.append])
    recorders.record(make_turn(), EngineRequest(request_id="r", messages=[]), dict)
    recorders.close()
    assert len(turns) == 1
    assert "failed while it was waited for" in caplog.text


def test_syncing_thread_that_was_ended_is_replaced(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = StoreRecorder(path, gather_seconds=0)
    recorder.record(make_turn())
    assert recorder.flush()
    syncer = recorder._store._syncer
    assert syncer is not None
    old = syncer._thread
    assert old is not None
    end(old, syncer._work)
    delays = len(recorder.sync_delays())
    for _ in range(100):
        recorder.record(make_turn())
        recorder.flush()
        if len(recorder.sync_delays()) > delays:
            break
        time.sleep(0.01)
    assert syncer._thread is not old
    assert len(recorder.sync_delays()) > delays
    recorder.close()


# --- what leaves without content recording

SECRET = "sk-very-secret"  # noqa: S105 # a test's


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (f"RemoteEngineError: 401 bad key {SECRET}", "RemoteEngineError"),
        (f"pkg.mod.Error: {SECRET}", "pkg.mod.Error"),
        (f"{SECRET} was refused", "error"),
        (f"{SECRET}: refused", "error"),
        ("", "error"),
        ("the tool answered with an error", "the tool answered with an error"),
        ("EngineDeadError", "EngineDeadError"),
    ],
)
def test_error_keeps_its_class_alone(error: str, kept: str) -> None:
    assert error_class(error) == kept


@pytest.mark.parametrize("content", [False, True])
def test_server_echo_stays_out_unless_content_is_wanted(path: Path, content: bool) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from prometheus_client import CollectorRegistry, generate_latest

    from mixquant_agents.dashboard.report import thread_report
    from mixquant_agents.dashboard.views import overview_page, thread_page
    from mixquant_agents.telemetry.export.otel.metrics import OtelMetricsSink
    from mixquant_agents.telemetry.metrics import PrometheusSink
    from mixquant_agents.telemetry.tracing import SpanSink

    exporter, registry, reader = InMemorySpanExporter(), CollectorRegistry(), InMemoryMetricReader()
    sinks = [
        SpanSink(SimpleSpanProcessor(exporter)), PrometheusSink(registry), OtelMetricsSink(MeterProvider([reader])),
    ]  # fmt: skip
    recorder = StoreRecorder(path, content=content, sinks=sinks)
    recorder.record(make_turn(turn_id="t", error=f"RemoteEngineError: you sent {SECRET}"))
    recorder.record_span(
        Span(kind=SpanKind.TOOL, name="search", span_id="s", started_at=at(1), seconds=0.5, thread_id="thread",
             error=f"ToolError: {SECRET}", arguments=SECRET, result=SECRET)
    )  # fmt: skip
    recorder.close()
    with TurnStore(path) as store:
        pages = [
            overview_page(store, {"window": "all"}),
            thread_page(store, {"id": "thread", "turn": "t"}),
            thread_report(store, "thread", content=content),
        ]
    exported = "".join(span.to_json() for span in exporter.get_finished_spans())
    metrics = generate_latest(registry).decode() + str(reader.get_metrics_data())
    assert (SECRET in "".join(pages)) is content
    assert (SECRET in exported) is content
    assert SECRET not in metrics
    files = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert (SECRET.encode() in files) is content
    assert "RemoteEngineError" in exported
    assert all("RemoteEngineError" in page for page in pages)
