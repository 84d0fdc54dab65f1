"""A phase or a count that is added to ``records.py`` alone is stored, summed up, exported and shown; so is an engine
that nobody here knows."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from telemetry_help import make_turn, stored

import mixquant_agents
from mixquant_agents.dashboard.views import overview_page, thread_page
from mixquant_agents.telemetry import QueueRecorder, StoreRecorder
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.export.otel.spans import SpanSink
from mixquant_agents.telemetry.export.prometheus import PrometheusSink
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore

PACKAGE = Path(mixquant_agents.__file__).parent

PHASE = """    handover_seconds: Annotated[
        Seconds | None, TimeField(label="KV handover", help="Time the keys and values travelled.", phase="first_token")
    ] = None
    ttft_seconds: Annotated["""
COUNT = """    sink_tokens: Annotated[Tokens | None, CountField(label="sink rows", help="Rows of sinks.")] = None
    preemptions: Annotated["""

USE = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from mixquant_agents import records
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.dashboard.compare import compare_page
from mixquant_agents.dashboard.views import thread_page
from mixquant_agents.telemetry.export.prometheus import PrometheusSink
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.export.otel.spans import SpanSink

assert Path(records.__file__).is_relative_to(sys.argv[2]), records.__file__
path = Path(sys.argv[1])
old = TurnStore(path)  # which no writer of this version has opened yet
assert old.thread("thread")[0].handover_seconds is None
assert old.percentiles("handover") == {0.5: None, 0.95: None, 0.99: None}
overview(old)
old.close()

registry, exporter = CollectorRegistry(), InMemorySpanExporter()
recorder = StoreRecorder(path, sinks=[SpanSink(SimpleSpanProcessor(exporter)), PrometheusSink(registry)])
recorder.record(records.TurnRecord(
    turn_id="new", thread_id="thread", model="model", engine="pair", policy="exact", started_at=records.utc_now(),
    queue_seconds=0.5, prefill_seconds=1.0, handover_seconds=0.25, delivery_seconds=0.0, ttft_seconds=1.75,
    total_seconds=2.0, sink_tokens=4,
))
recorder.close()
assert (recorder.problem, recorder.dropped) == (None, 0)
store = TurnStore(path)
turn = store.turn("new")
assert (turn.handover_seconds, turn.sink_tokens) == (0.25, 4)
assert store.percentiles("handover")[0.5] == 0.25
figures = overview(store).figures
assert figures.percentiles["handover"][0] == 0.25
assert figures.tokens["sink"] == 4
labels = {"model": "model", "engine": "pair", "policy": "exact"}
assert registry.get_sample_value("mixquant_handover_seconds_sum", labels) == 0.25
assert registry.get_sample_value("mixquant_sink_tokens_total", labels) == 4
attributes = exporter.get_finished_spans()[0].attributes
assert attributes["mixquant.handover.seconds"] == 0.25
page = thread_page(store, {"id": "thread", "turn": "new"})
for text in ("KV handover", "sink rows", "p-handover", "kv handover <b>250"):
    assert text in page, text
assert "KV handover, p50" in compare_page(store, {"a.policy": "exact", "b.policy": "exact", "window": "all"})
"""


@pytest.mark.slow
def test_new_phase_and_count_touch_records_alone(tmp_path: Path) -> None:
    copy = tmp_path / "source" / "mixquant_agents"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / "records.py").read_text()
    for field, added in (("ttft_seconds", PHASE), ("preemptions", COUNT)):
        source, times = re.subn(rf"    {field}: Annotated\[", added, source)
        assert times == 1
    (copy / "records.py").write_text(source)
    path = tmp_path / "turns.sqlite"
    stored(path, make_turn()).close()
    result = subprocess.run(  # noqa: S603 # our own script
        [sys.executable, "-c", USE, str(path), str(copy.parent)],
        env={"PYTHONPATH": str(copy.parent), "PATH": "/usr/bin:/bin"},
        cwd=copy.parent,  # or this checkout's package would be found first
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


def test_engine_of_others_is_recorded_exported_and_shown(path: Path) -> None:
    registry, exporter = CollectorRegistry(), InMemorySpanExporter()
    recorder = StoreRecorder(path, sinks=[SpanSink(SimpleSpanProcessor(exporter)), PrometheusSink(registry)])
    recorder.record(make_turn(engine="somebody's", turn_id="t"))
    recorder.close()
    assert (recorder.problem, recorder.dropped) == (None, 0)
    with TurnStore(path) as store:
        assert [turn.engine for turn in store.turns(TurnFilter(engine="somebody's"))] == ["somebody's"]
        assert overview(store, TurnFilter(engine="somebody's")).figures.turns == 1
        assert "1 turns in all" in overview_page(store, {"window": "all", "engine": "somebody's"})
        assert "turn 0" in thread_page(store, {"id": "thread"})
    labels = {"model": "model", "engine": "somebody's", "policy": "exact", "outcome": "ok"}
    assert registry.get_sample_value("mixquant_turns_total", labels) == 1
    assert exporter.get_finished_spans()[0].attributes["gen_ai.provider.name"] == "somebody's"


def test_columns_of_another_version_are_left_alone(path: Path) -> None:
    stored(path, make_turn(turn_id="before")).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE turns ADD COLUMN from_elsewhere TEXT DEFAULT 'x'")
        connection.execute("ALTER TABLE turns DROP COLUMN preemptions")
        connection.execute("ALTER TABLE turns DROP COLUMN itl_p95_seconds")
    with TurnStore(path) as store:
        assert store.turn("before").preemptions is None
        overview(store)
    store = stored(path, make_turn(turn_id="after", preemptions=2))
    assert (store.turn("before").preemptions, store.turn("after").preemptions) == (None, 2)


def test_recorder_without_a_store_takes_any_engine() -> None:
    exporter = InMemorySpanExporter()
    recorder = QueueRecorder([SpanSink(SimpleSpanProcessor(exporter))])
    recorder.record(make_turn(engine="remote", timing_source="client", device=None))
    recorder.record(make_turn(engine="local", timing_source="client", device="cpu"))
    recorder.close()
    assert [span.kind.name for span in exporter.get_finished_spans()] == ["CLIENT", "INTERNAL"]
