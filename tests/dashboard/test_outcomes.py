"""A tool's error is seen in the list and on the thread's page, and fails no turn."""

from __future__ import annotations

import re
from contextlib import closing
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dashboard_help import make_turn

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.compare import compare_page
from mixquant_agents.dashboard.export import export_links, thread_rows
from mixquant_agents.dashboard.report import thread_report
from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.store.reader import TurnStore


@pytest.fixture
def store(tmp_path: Path) -> TurnStore:
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=True)
    for thread, error in (("fine", None), ("tools", None), ("ended", None), ("turn", "EngineDeadError: the 7 secrets")):
        turn = make_turn(thread_id=thread, run_id=f"run-{thread}", error=error)
        recorder.record(turn)
        if thread == "turn":
            for values in (
                {"aborted": True},
                {"aborted": True},
                {"error": "TurnTimeoutError: late", "policy": "other"},
            ):
                recorder.record(make_turn(thread_id=thread, run_id=f"run-{thread}", turn_index=1, **values))
        kinds = {"tools": [SpanKind.TOOL] * 7, "ended": [SpanKind.TOOL, SpanKind.AGENT]}.get(thread, [])
        for number, kind in enumerate(kinds):
            recorder.record_span(
                Span(
                    kind=kind, name=f"{kind}_{number}", span_id=f"{thread}-{number}", run_id=turn.run_id,
                    thread_id=thread, started_at=turn.started_at, seconds=0.1, error=f"KeyError: '<pens> {number}'",
                )
            )  # fmt: skip
    recorder.close()
    assert recorder.dropped == 0
    return TurnStore(tmp_path / "turns.sqlite")


def outcomes(store: TurnStore, **query: str) -> dict[str, str]:
    """The list's column, by thread."""
    page = str(views.threads_page(store, query))
    cells = re.findall(r'<a id="thread-\d+" href="[^"]*id=(\w+)">.*?data-label="Outcome">(.*?)</td>', page, re.DOTALL)
    return {thread: " ".join(re.sub("<[^>]+>", " ", cell).split()) for thread, cell in cells}


def test_list_says_what_went_wrong(store: TurnStore) -> None:
    assert outcomes(store) == {
        "fine": "fine",
        "tools": "7 tool errors",
        "ended": "1 run failed 1 tool error",
        "turn": "2 turns failed 2 turns aborted",
    }
    assert outcomes(store, policy="other") == {"turn": "1 turn failed"}
    assert outcomes(store, policy="exact")["turn"] == "1 turn failed 2 turns aborted"
    assert list(outcomes(store, tools="failed")) == ["ended", "tools"]
    assert list(outcomes(store, order="bad"))[:2] == ["turn", "tools"]
    with pytest.raises(RequestError, match="tools 'broken' is unknown; 'failed' chooses"):
        views.threads_page(store, {"tools": "broken"})


def test_choice_of_threads_is_kept_in_the_form_and_in_the_links(store: TurnStore) -> None:
    form = str(views.filters_bar(store, "/threads", {"tools": "failed"}))
    assert '<option value="failed" selected>with errors</option>' in form
    assert 'name="tools"' not in str(views.filters_bar(store, "/", {}))
    assert "tools=failed&amp;order=" in str(views.threads_page(store, {"tools": "failed"}))
    assert all("tools=failed" in urlsplit(address).query for _, address in export_links("threads", {"tools": "failed"}))
    rows = {row["thread_id"]: row for row in thread_rows(store, {"tools": "failed"})}
    assert {thread: (row["failed_tools"], row["failed_runs"]) for thread, row in rows.items()} == {
        "tools": (7, 0),
        "ended": (1, 1),
    }


def state(page: str) -> str:
    """The line on a thread's page that says what went wrong; empty where nothing did."""
    line = re.search(r'<p class="outcome">(.*?)</p>', page, re.DOTALL)
    return unescape(" ".join(re.sub("<[^>]+>", " ", line[1]).split())) if line else ""


def test_thread_says_which_tools_failed(store: TurnStore) -> None:
    page = str(views.thread_page(store, {"id": "tools"}))
    assert state(page).startswith("7 tool errors tool_0: KeyError: '<pens> 0' tool_1: KeyError")
    assert state(page).endswith("tool_4: KeyError: '<pens> 4' and 2 more")
    assert "<pens>" not in page
    assert (
        state(str(views.thread_page(store, {"id": "ended"})))
        == "1 run failed 1 tool error tool_0: KeyError: '<pens> 0'"
    )
    assert state(str(views.thread_page(store, {"id": "turn"}))) == (
        "2 turns failed 2 turns aborted turn 0: EngineDeadError: the 7 secrets turn 1: TurnTimeoutError: late"
    )
    assert not state(str(views.thread_page(store, {"id": "fine"})))


@pytest.mark.parametrize("content", [False, True])
def test_report_quotes_errors_only_with_content(store: TurnStore, content: bool) -> None:
    page = thread_report(store, "tools", content=content)
    assert ("pens" in page) == content
    assert state(page).startswith("7 tool errors tool_0: KeyError")
    page = thread_report(store, "turn", content=content)
    assert ("secrets" in page) == content
    assert "EngineDeadError" in page


@pytest.mark.parametrize("transfer", [None, 0.25])
def test_column_stands_only_where_a_turn_has_its_figure(tmp_path: Path, transfer: float | None) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    times = {"transfer_seconds": transfer, "ttft_seconds": 0.043 + (transfer or 0)}
    for policy in ("exact", "mixquant-fp8"):
        recorder.record(make_turn(thread_id="pair", policy=policy, **times))
    recorder.close()
    with closing(TurnStore(tmp_path / "turns.sqlite")) as store:
        thread = str(views.thread_page(store, {"id": "pair"}))
        compared = str(compare_page(store, {"a.policy": "exact", "b.policy": "mixquant-fp8"}))
    shown = transfer is not None
    assert ("KV transfer</th>" in thread) == shown
    assert ('data-label="KV transfer"' in thread) == shown
    assert ("KV transfer, p50" in compared) == shown
    assert ("<b>KV transfer</b>" in compared) == shown
    assert "Queue</th>" in thread
    assert "Queue, p50" in compared
    headings = re.findall(r"<thead><tr class=\"group\">.*?</thead>", thread, re.DOTALL)[-1]
    spans = [int(count) for count in re.findall(r'colspan="(\d+)"', headings)]
    assert sum(spans) + 1 == len(re.findall(r"<th scope=\"col\"", headings))
