"""Stores with odd contents: long threads, names that are markup elsewhere, times that lie ages apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_help import make_turn

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.plots import _save, plot_comparison
from mixquant_agents.dashboard.report import write_report
from mixquant_agents.dashboard.store_source import StoreSource
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.overview import compare
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore


@pytest.mark.slow
def test_report_of_a_long_thread_holds_every_turn(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    for n in range(520):
        recorder.record(make_turn(thread_id="long", turn_index=n))
    recorder.close()
    write_report(tmp_path / "turns.sqlite", tmp_path / "r.html", thread="long")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<h2>Turn ") == 520
    assert "520 turns," in page


@pytest.mark.slow
def test_plots_with_names_that_look_like_formulas(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    formula = r"$\no_such$"
    turn = make_turn(thread_id="t", run_id="r", policy=formula)
    recorder.record(turn)
    span: dict[str, Any] = {
        "kind": SpanKind.TOOL,
        "span_id": "s",
        "run_id": "r",
        "thread_id": "t",
        "started_at": turn.started_at,
    }
    recorder.record_span(Span(name=formula, seconds=0.1, **span))
    recorder.close()
    made = write_report(tmp_path / "turns.sqlite", tmp_path / "r.html", thread="t", plots=tmp_path)
    assert len(made["files"]) == 3
    seen = compare(TurnStore(tmp_path / "turns.sqlite"), TurnFilter(policy="exact"), TurnFilter(policy=formula))
    assert plot_comparison(seen, ("A exact", f"B {formula}"), tmp_path / "c")


@pytest.mark.slow
def test_picture_taller_than_any_may_be(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    assert _save(Figure(figsize=(0.2, 500)), tmp_path / "tall")


def test_moment_of_work_beside_ages_of_waiting(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    brief = {"queue_seconds": 0.0, "prefill_seconds": 1e-9, "delivery_seconds": 0.0, "ttft_seconds": 1e-9}
    brief |= {"decode_seconds": 0.0, "total_seconds": 1e-9}
    for year in ("1970", "2020"):
        recorder.record(make_turn(thread_id="t", started_at=f"{year}-01-01T00:00:00+00:00", **brief))
    recorder.close()
    assert "idle between runs" in views.thread_page(TurnStore(tmp_path / "turns.sqlite"), {"id": "t"})


def test_thread_whose_name_holds_a_nul(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    for thread in ("a\x00b", "a", '"', "\\u0041"):
        recorder.record(make_turn(thread_id=thread))
    recorder.close()
    found = TurnStore(tmp_path / "turns.sqlite").threads()
    assert {one.thread_id: one.turns for one in found} == {"a\x00b": 1, "a": 1, '"': 1, "\\u0041": 1}


def test_messages_of_any_shape_are_shown(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=True)
    odd: list[Any] = ["words", None, 7, ["list"], {"role": 1, "content": {"a": 1}, "tool_calls": "none"}]
    turns = [make_turn(thread_id="t", started_at=f"2026-03-01T12:00:0{n}+00:00") for n in range(2)]
    for n, turn in enumerate(turns):
        message_view: list[Any] = [*odd, f"turn {n}"]
        recorder.record(turn, content=TurnContent(messages=message_view, answer=odd[0]))
    recorder.close()
    page = views.thread_page(TurnStore(tmp_path / "turns.sqlite"), {"id": "t", "turn": turns[1].turn_id})
    assert "turn 1" in page


def test_path_that_no_file_can_have_is_a_store_that_is_not_there(tmp_path: Path) -> None:
    source = StoreSource(tmp_path / ("x" * 300))
    assert not source.exists()
    assert source.version() == ("missing",)
