"""A waterfall's rows open: turns always, tools where content was recorded; its axis says when."""

from __future__ import annotations

import re
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
from dashboard_help import make_turn
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.report import thread_report
from mixquant_agents.dashboard.timeline import TICKS, _Axis, _Item
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.events import TurnContent
from mixquant_agents.telemetry.store.reader import TurnStore

WORDS = {"arguments": '{"query": "<b>budget</b>"}', "result": "three notes", "error": "ValueError: too late"}


def recorded(path: Path, content: bool) -> TurnStore:
    recorder = StoreRecorder(path, content=content)
    recorder.record_span(
        Span(
            kind=SpanKind.TOOL, name="search", span_id="s1", run_id="r", thread_id="t",
            started_at="2026-03-01T12:00:00+00:00", seconds=0.2, **WORDS,
        )
    )  # fmt: skip
    recorder.record_span(
        Span(
            kind=SpanKind.TOOL, name="clock", span_id="s2", run_id="r", thread_id="t",
            started_at="2026-03-01T12:00:00.3+00:00", seconds=0.1,
        )
    )  # fmt: skip
    answer = {
        "role": "assistant",
        "content": "It is <i>due</i> in May. " + "x" * 5000,
        "tool_calls": [{"function": {"name": "notify", "arguments": '{"who": "Ann"}'}}],
    }
    turn = make_turn(
        thread_id="t", run_id="r", started_at="2026-03-01T12:00:00.5+00:00", tool_calls=("notify",), cached_tokens=800
    )
    recorder.record(turn, content=TurnContent(messages=[{"role": "user"}], answer=answer))
    recorder.close()
    assert recorder.dropped == 0
    return TurnStore(path)


def row_of(page: str, beginning: str) -> str:
    start = page.index(beginning)
    return page[start : page.index("</details>", start)].replace("\u202f", " ")


def test_turn_row_opens_with_its_times_tokens_and_answer(tmp_path: Path) -> None:
    page = str(views.thread_page(recorded(tmp_path / "t.sqlite", content=True), {"id": "t"}))
    inside = row_of(page, '<details id="inside-')
    assert 'class="p-prefill">prefill <b>40.0 ms</b>' in inside
    assert 'class="p-decode">decode <b>500 ms</b>' in inside
    assert 'class="p-cached">cached <b>800</b>' in inside
    assert "quantized rows" not in inside, "there were none"
    assert "It is &lt;i&gt;due&lt;/i&gt; in May. " in inside
    assert "x…</pre>" in inside
    assert len(inside) < 4000, "a long answer is cut"
    assert "→ notify(" in inside
    assert re.search(r'href="/thread\?id=t&amp;turn=[\w-]+#detail"', inside), "the whole of it is a link away"


def test_turn_row_without_content_names_the_tools_called(tmp_path: Path) -> None:
    page = str(views.thread_page(recorded(tmp_path / "t.sqlite", content=False), {"id": "t"}))
    inside = row_of(page, '<details id="inside-')
    assert "40.0 ms" in inside
    assert "<dt>Tools called</dt><dd>notify</dd>" in inside
    assert "due" not in inside


def test_turn_row_of_a_failed_turn_says_why_and_knows_no_zeros(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "t.sqlite", content=True)
    unknown = dict.fromkeys(
        (field for field in TurnRecord.model_fields if field.endswith(("_tokens", "_seconds"))), None
    )
    recorder.record(make_turn(thread_id="t", error="EngineDeadError: <gone>", finish_reason=None, **unknown))
    recorder.close()
    inside = row_of(str(views.thread_page(TurnStore(tmp_path / "t.sqlite"), {"id": "t"})), '<details id="inside-')
    assert "<pre>EngineDeadError: &lt;gone&gt;</pre>" in inside
    assert inside.count("not known") == 2
    assert "<b>0" not in inside


def test_tool_row_opens_where_content_was_recorded(tmp_path: Path) -> None:
    page = str(views.thread_page(recorded(tmp_path / "t.sqlite", content=True), {"id": "t"}))
    assert page.count('<details id="tool-') == 1, "the other tool left nothing to show"
    inside = row_of(page, '<details id="tool-')
    assert "<b>budget</b>" not in inside
    assert '"query": "<b>budget</b>"' in unescape(inside)
    assert "three notes" in inside
    assert "ValueError: too late" in inside
    assert "clock" in page


def test_tool_row_without_content_shows_none(tmp_path: Path) -> None:
    page = str(views.thread_page(recorded(tmp_path / "t.sqlite", content=False), {"id": "t"}))
    assert "budget" not in page
    assert "three notes" not in page
    assert "too late" not in page
    assert "<dt>Arguments</dt>" not in page


@pytest.mark.parametrize("content", [False, True])
def test_report_opens_tool_rows_only_with_content(tmp_path: Path, content: bool) -> None:
    page = thread_report(recorded(tmp_path / "t.sqlite", content=True), "t", content=content)
    assert ("three notes" in page) == ('<details id="tool-' in page) == ("It is &lt;i&gt;due" in page) == content
    assert "40.0 ms" in row_of(page, '<details id="inside-')


def test_axis_says_when(tmp_path: Path) -> None:
    page = str(views.thread_page(recorded(tmp_path / "t.sqlite", content=False), {"id": "t"})).replace("\u202f", " ")
    axis = page[page.index('class="times"') :]
    assert "0 to 1.05 s since the thread began" in axis
    assert axis.index(">0 s<") < axis.index(">262 ms<") < axis.index(">525 ms<") < axis.index(">1.05 s<")


@given(st.lists(st.tuples(st.integers(0, 10**11), st.integers(1, 10**8)), min_size=1, max_size=20))
def test_ticks_are_instants_of_the_axis_from_end_to_end(spans: list[tuple[int, int]]) -> None:
    axis = _Axis(sorted((_Item(start, start + length) for start, length in spans), key=lambda item: item.start))
    ticks = axis.ticks()
    if not ticks:
        assert axis.end - axis.start < TICKS
        return
    assert [percent for percent, _ in ticks] == [0, 25, 50, 75, 100]
    assert ticks[0][1] == 0
    assert ticks[-1][1] == pytest.approx((axis.end - axis.start) / 1e6, rel=1e-6, abs=1e-6)
    assert all(before[1] <= after[1] for before, after in pairwise(ticks))
    for percent, seconds in ticks:
        here = axis.start + round(seconds * 1e6)
        # Rounding to a microsecond moves at most that far on the axis.
        low, high = axis.percent(max(axis.start, here - 2)), axis.percent(min(axis.end, here + 2))
        assert low - 1e-6 <= percent <= high + 1e-6
