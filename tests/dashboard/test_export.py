"""Exports hold what the page shows, under the page's own filters, and harm no spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from dashboard_help import make_turn, turn_read_in
from markupsafe import escape

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.export import FORMATS, TABLES, export_links, exported
from mixquant_agents.dashboard.store_source import StoreSource
from mixquant_agents.errors import RequestError
from mixquant_agents.records import COUNTS, TIMES
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.store.reader import TurnStore

EVIL = '=HYPERLINK("http://evil.example")'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TurnStore:
    path = tmp_path_factory.mktemp("export") / "turns.sqlite"
    recorder = StoreRecorder(path)
    for policy, seconds in (("exact", 0.3), ("fast", 0.1)):
        for n in range(60):
            recorder.record(turn_read_in(seconds, policy=policy, thread_id=f"{policy}-{n}"))
    recorder.record(make_turn(policy="emulation", emulated=True, thread_id=EVIL, tool_calls=("a", "b"), error="x, y"))
    recorder.record(make_turn(policy="emulation", emulated=True, thread_id=EVIL, total_seconds=float("inf")))
    recorder.close()
    assert recorder.dropped == 0
    return TurnStore(path)


def rows(store: TurnStore, table: str, **query: str) -> list[dict[str, Any]]:
    content, media_type = exported(store, table, "json", query)
    assert media_type == "application/json"
    made: list[dict[str, Any]] = json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return made


def cells(store: TurnStore, table: str, **query: str) -> list[dict[str, str]]:
    content, _ = exported(store, table, "csv", query)
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_policies_are_exported_as_shown(store: TurnStore) -> None:
    exact, emulation, fast = rows(store, "policies")
    assert [row["policy"] for row in (exact, emulation, fast)] == ["exact", "emulation", "fast"]
    assert fast["turns"] == 60
    assert fast["reading_saved_seconds"] == pytest.approx(12.0)
    assert fast["reading_exact_seconds"] == pytest.approx(18.0)
    assert (emulation["emulated"], emulation["reading_saved_seconds"]) == (True, None)
    assert "emulated" in emulation["reading_not_compared"]
    assert fast["ttft_p50_seconds"] == pytest.approx(0.103)
    assert [row["policy"] for row in rows(store, "policies", policy="fast")] == ["fast"]
    assert rows(store, "policies", policy="none of them") == []
    assert cells(store, "policies", policy="none of them") == []


def test_threads_are_exported_with_all_pages_and_the_search(store: TurnStore) -> None:
    everything = rows(store, "threads")
    assert len(everything) == 121
    shown = str(views.threads_page(store, {}))
    assert all(f">{row['thread_id']}</a>" in shown for row in everything[1:50])
    assert {row["thread_id"] for row in rows(store, "threads", search="fast-1")} == {
        "fast-1", *(f"fast-1{n}" for n in range(10)),
    }  # fmt: skip
    assert [row["thread_id"] for row in rows(store, "threads", status="bad")] == [EVIL]


def test_turns_hold_every_count_and_time(store: TurnStore) -> None:
    first, second = rows(store, "turns", id=EVIL)
    assert {field.field for field in (*COUNTS, *TIMES)} <= first.keys()
    assert (first["tool_calls"], first["error"], first["emulated"]) == (["a", "b"], "error", True)
    assert (first["drafted_tokens"], second["total_seconds"]) == (None, None), "unknown and endless are null"
    with pytest.raises(RequestError, match="name a thread"):
        exported(store, "turns", "csv", {})


@pytest.mark.parametrize("table", TABLES)
def test_csv_says_the_same_as_json(store: TurnStore, table: str) -> None:
    for named, written in zip(rows(store, table, id=EVIL), cells(store, table, id=EVIL), strict=True):
        assert list(named) == list(written)
        for name, value in named.items():
            cell = written[name]
            if isinstance(value, bool):
                assert cell == str(value).lower()
            elif isinstance(value, int | float):
                assert float(cell) == value
            elif value is None:
                assert cell == ""
            else:
                assert cell.removeprefix("'") == ("; ".join(value) if isinstance(value, list) else value)


def test_spreadsheet_computes_no_name(store: TurnStore) -> None:
    for table in ("threads", "turns"):
        assert {row["thread_id"] for row in cells(store, table, id=EVIL, search="evil")} == {f"'{EVIL}"}
        assert {row["thread_id"] for row in rows(store, table, id=EVIL, search="evil")} == {EVIL}


@pytest.mark.parametrize(
    ("page", "query", "table"),
    [
        (views.overview_page, {"policy": "fast", "window": "1h"}, "policies"),
        (views.threads_page, {"policy": "fast", "search": "1", "offset": "50"}, "threads"),
        (views.thread_page, {"id": EVIL, "show": "500"}, "turns"),
    ],
)
def test_pages_link_to_their_export_with_their_filter(
    store: TurnStore, page: Any, query: dict[str, str], table: str
) -> None:
    links = export_links(table, {name: value for name, value in query.items() if name not in ("offset", "show")})
    assert [name.lower() for name, _ in links] == list(FORMATS)
    shown = str(page(store, {**query, "offset": ""}))
    for name, address in links:
        assert f'href="{escape(address)}" download' in shown
        kept = dict(parse_qsl(urlsplit(address).query))
        assert kept.items() <= query.items()
        content, _ = exported(store, table, name.lower(), kept)
        assert content.strip() not in (b"", b"[]")


def test_export_answers_what_is_wrong(store: TurnStore, tmp_path: Path) -> None:
    from mixquant_agents.dashboard.live import export_response

    source = StoreSource(store.path)
    good = export_response(source, "threads", "csv", {})
    assert (good.status_code, good.media_type) == (200, "text/csv; charset=utf-8")
    assert good.headers["content-disposition"] == 'attachment; filename="mixquant-threads.csv"'
    for table, ending, query in (("no", "csv", {}), ("turns", "xls", {}), ("threads", "csv", {"since": "yesterday"})):
        wrong = export_response(source, table, ending, query)
        assert wrong.status_code == 400
        assert "content-disposition" not in wrong.headers
        assert wrong.headers["cache-control"] == "no-store"
    assert good.headers["cache-control"] == "no-store"
    assert export_response(StoreSource(tmp_path / "none.sqlite"), "threads", "csv", {}).status_code == 404
    (tmp_path / "broken.sqlite").write_bytes(b"no database" * 100)
    assert export_response(StoreSource(tmp_path / "broken.sqlite"), "threads", "csv", {}).status_code == 503
