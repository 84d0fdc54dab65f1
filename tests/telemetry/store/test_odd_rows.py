"""Rows that another version, another program or a bad disk left: no page and no report fails on them, and recording
goes on beside them."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from telemetry_help import at, make_turn

from mixquant_agents.dashboard.compare import compare_page
from mixquant_agents.dashboard.report import comparison_report, thread_report
from mixquant_agents.dashboard.views import overview_page, thread_page, threads_page
from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry import RunLink, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis import collect
from mixquant_agents.telemetry.store import TurnFilter, TurnStore
from mixquant_agents.telemetry.store.aggregate import Aggregate
from mixquant_agents.telemetry.store.connection import connect_writer

ROLLUPS = ("rollups", "bad_rollups")
TABLES = ("turns", "series", "spans", "thread_stats", *ROLLUPS, "contents", "blocks")

ODD: dict[str, Any] = {
    "text": "odd 'text' <b>",
    "no UTF-8": "CAST(x'fffe41' AS TEXT)",
    "bytes": b"\x00\xffodd",
    "nothing": None,
    "negative": -7,
    "huge": 2**62,
    "endless": float("inf"),
    "broken JSON": '{"ttft": {"1": ',
    "odd JSON": '[{"role": 3}, 5, null]',
    "odd object": '{"ttft": {"a": "b"}, "prompt": "x", "1.2": [1, 2]}',
    "date": "2026-13-45",
}
"""Values by name; one that begins with CAST is SQL."""


def healthy(path: Path) -> None:
    """A store in which every table has rows."""
    recorder = StoreRecorder(path, content=True)
    for n in range(4):
        messages = [{"role": "user", "content": "a question"}]
        recorder.link(RunLink(f"run-{n}", "root", "model", "node"))
        recorder.record(
            make_turn(
                n, turn_id=f"t{n}", run_id=f"run-{n}", tool_calls=("search",), turn_index=n,
                policy=("exact", "mixquant-fp8")[n % 2], error="EngineError: gone" if n == 2 else None,
            ),
            content=TurnContent(messages=messages, answer={"role": "assistant", "content": "x"}, prompt_text="p"),
            prompt_token_ids=range(100 + 16 * n),
        )  # fmt: skip
        for kind in SpanKind:
            recorder.record_span(
                Span(kind=kind, name="search", span_id=f"{kind}-{n}", run_id="root", thread_id="thread",
                     started_at=at(n + 0.6), seconds=0.2, arguments="{}", result="found")
            )  # fmt: skip
    recorder.close()
    assert (recorder.problem, recorder.dropped) == (None, 0)


def cases(folder: Path, tables: tuple[str, ...]) -> Iterator[tuple[str, str, str, Any]]:
    """``(table, column, name, value)``: every column of the tables with some of the values, all values in turn."""
    values = itertools.cycle(ODD.items())
    with closing(connect_writer(folder / "turns.sqlite")) as connection:
        for table in tables:
            for column in connection.execute(f"PRAGMA table_info({table})").fetchall():
                # Ids that tie rows together are kept: changing them deletes a row rather than making it odd.
                if (table, column[1]) not in {("turns", "id"), ("turns", "series_id"), ("series", "id")}:
                    for name, value in itertools.islice(values, 5):
                        yield table, column[1], name, value


def make_odd(path: Path, table: str, column: str, value: Any) -> int:
    """Write ``value`` into a column of all rows, whatever the table's rules say; how many rows took it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("DROP INDEX IF EXISTS turns_by_turn")
        expression, values = ("?", (value,)) if not str(value).startswith("CAST") else (value, ())
        try:
            return connection.execute(f"UPDATE OR IGNORE {table} SET {column} = {expression}", values).rowcount  # noqa: S608
        except sqlite3.IntegrityError:  # a key that must be a number
            return 0


def show_everything(path: Path) -> str:
    """All pages and reports over the store."""
    with TurnStore(path) as store:
        names = {"policy": "exact", "window": "all"}
        pages = [
            overview_page(store, {"window": "all"}),
            overview_page(store, {"status": "bad", **names}),
            threads_page(store, {"window": "all"}),
            thread_page(store, {"id": "thread"}),
            thread_page(store, {"id": "thread", "turn": "t3"}),
            compare_page(store, {"window": "all", "a.policy": "exact", "b.policy": "mixquant-fp8"}),
        ]
        for thread in store.threads(limit=5):
            pages.append(thread_page(store, {"id": thread.thread_id}))
            if store.thread(thread.thread_id):
                pages.append(thread_report(store, thread.thread_id, content=True))
        with suppress(RequestError):  # where the odd value leaves a side without turns
            pages.append(comparison_report(store, TurnFilter(policy="exact"), TurnFilter(policy="mixquant-fp8"))[0])
        for turn in store.turns():
            store.content(turn)
            store.prefix(turn)
        store.percentiles("ttft")
    return "".join(pages)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd") / "template.sqlite"
    healthy(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("by_turns", [True, False], ids=["turn by turn", "from roll-ups"])
def test_odd_values_fail_no_page_no_report_and_no_recording(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_turns: bool
) -> None:
    if not by_turns:
        monkeypatch.setattr(collect, "EXACT_TURNS", 0)
    tried = 0
    failures: list[str] = []
    for table, column, name, value in cases(tmp_path / "empty", TABLES if by_turns else ROLLUPS):
        path = tmp_path / "odd.sqlite"
        shutil.copy(template, path)
        if not make_odd(path, table, column, value):
            continue
        tried += 1
        try:
            assert len(show_everything(path)) > 10_000
            if by_turns:
                recorder = StoreRecorder(path, gather_seconds=0)
                recorder.record(make_turn(9, turn_id="after", policy="exact", error="E: x"))
                recorder.close()
                assert (recorder.problem, recorder.dropped) == (None, 0)
                with TurnStore(path) as store:
                    assert store.turn("after") is not None
        except Exception as error:
            failures.append(f"{table}.{column} = {name}: {type(error).__name__}: {error}")
        for file in tmp_path.glob("odd.sqlite*"):
            file.unlink()
    assert not failures, "\n".join(failures)
    assert tried > (250 if by_turns else 60)


@pytest.mark.parametrize("kind", ["guardrail", "", "TOOL"])
def test_unknown_span_kind_is_kept_as_it_is(path: Path, kind: str) -> None:
    healthy(path)
    make_odd(path, "spans", "kind", kind)
    with TurnStore(path) as store:
        assert {span.kind for span in store.spans(thread="thread")} == {kind or "?"}
    assert "turn 3" in show_everything(path)


def test_columns_that_are_not_known_change_nothing(path: Path) -> None:
    healthy(path)
    before = show_everything(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table in ("turns", "series", "spans", "thread_stats"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN from_elsewhere TEXT DEFAULT 'x'")
    after = show_everything(path)
    assert _without_instants(after) == _without_instants(before)


def _without_instants(page: str) -> list[str]:
    return [line for line in page.splitlines() if "Made " not in line and "footer" not in line]


def test_content_that_cannot_be_read_is_told(path: Path) -> None:
    healthy(path)
    make_odd(path, "contents", "packed", b"no zlib")
    with TurnStore(path) as store:
        assert "What was recorded cannot be read" in thread_page(store, {"id": "thread", "turn": "t3"})


def test_broken_names_of_tools_are_none(path: Path) -> None:
    healthy(path)
    make_odd(path, "turns", "tool_calls", "[broken")
    with TurnStore(path) as store:
        assert [turn.tool_calls for turn in store.thread("thread")] == [()] * 4


@pytest.mark.parametrize("broken", ["", "null", "[]", '{"ttft": 3}', '{"ttft": {"x": 1}}', '{"a": NaN}', "[" * 100_000])
def test_broken_rollup_keeps_what_can_be_read(broken: str) -> None:
    whole = Aggregate.of([make_turn()])
    turns, aborted, failed, sums, bins, strata = whole.dump()
    assert Aggregate.load(turns, aborted, failed, broken, bins, strata).bins == whole.bins
    assert Aggregate.load(turns, aborted, failed, sums, broken, broken).sums == json.loads(sums)
    assert Aggregate.load(turns, aborted, failed, broken, broken, broken).turns == 1
