"""What is recorded is what is read: every field, by thread, run, model, policy and time; tools, content."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_help import at, make_turn, stored

from mixquant_agents.config import POLICY_PRESETS
from mixquant_agents.errors import RequestError, StoreError
from mixquant_agents.records import TurnRecord, percentile
from mixquant_agents.telemetry import RunLink, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.collect import collect
from mixquant_agents.telemetry.store.connection import connect_writer
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import from_microseconds, to_microseconds


def test_fields_come_back_as_recorded(path: Path) -> None:
    full = make_turn(
        1.234567, recomputed_rows=3, preemptions=1, reasoning_tokens=7, aborted=True,
        error="EngineDeadError: gone", tool_calls=("a", "b, \"c\""), emulated=True, turn_index=4, finish_reason="abort",
    )  # fmt: skip
    bare = TurnRecord(turn_id="bare", model="m", engine="openai", policy="exact", started_at=at(2))
    store = stored(path, full, bare, content=True)  # errors are kept whole
    for turn in (full, bare):
        found = store.turn(turn.turn_id)
        assert found is not None
        assert TurnRecord(**{name: getattr(found, name) for name in TurnRecord.model_fields}) == turn
    assert store.turn("nobody") is None


def test_new_field_of_the_record_needs_a_column(path: Path) -> None:
    connection = connect_writer(path)
    found = {
        row[0]
        for table in ("turns", "series")
        for row in connection.execute(f"SELECT name FROM pragma_table_info('{table}')")  # noqa: S608 # our names
    }
    connection.close()
    assert set(TurnRecord.model_fields) - {"started_at"} <= found


@given(st.datetimes(min_value=__import__("datetime").datetime(1970, 1, 2)))
def test_instants_survive_exactly(moment: Any) -> None:
    text = moment.isoformat(timespec="microseconds") + "+00:00"
    assert from_microseconds(to_microseconds(text)) == text
    assert to_microseconds(text.replace("+00:00", "Z")) == to_microseconds(text)


def test_reads_by_thread_run_model_policy_time_and_outcome(path: Path) -> None:
    turns = [
        make_turn(n, thread_id=f"t{n % 3}", model=f"m{n % 2}", policy=("exact", "mixquant-fp8")[n % 2], turn_index=n)
        for n in range(12)
    ]
    turns.append(make_turn(20, error="boom", thread_id=None, run_id=None))
    turns.append(make_turn(21, aborted=True))
    store = stored(path, *turns)
    assert [turn.turn_index for turn in store.thread("t1")] == [1, 4, 7, 10]
    assert [turn.turn_index for turn in store.thread("t1", limit=2)] == [7, 10]
    assert {turn.model for turn in store.turns(TurnFilter(model="m1"))} == {"m1"}
    assert len(store.turns(TurnFilter(policy="exact", model="m0"))) == 6
    assert not store.turns(TurnFilter(policy="nothing"))
    inside = store.turns(TurnFilter(since=at(3), until=at(6)))
    assert [turn.turn_index for turn in inside] == [5, 4, 3]
    assert [turn.error for turn in store.turns(TurnFilter(status="failed"))] == ["boom"]
    assert len(store.turns(TurnFilter(status="bad"))) == 2
    assert len(store.turns(TurnFilter(status="ok"))) == 12
    assert [turn.turn_id for turn in store.turns(TurnFilter(run=turns[5].run_id))] == [turns[5].turn_id]
    page = store.turns(limit=5)
    assert [turn.number for turn in store.turns(limit=5, before=page[-1].number)] == [9, 8, 7, 6, 5]


def test_threads_with_several_policies_are_one_line(path: Path) -> None:
    turns = [make_turn(n, thread_id=f"t{n // 4}", policy=("exact", "mixquant-fp8")[n % 2]) for n in range(40)]
    store = stored(path, *turns)
    threads = store.threads(limit=3)
    assert [one.thread_id for one in threads] == ["t9", "t8", "t7"]
    assert threads[0].turns == 4
    assert set(threads[0].policies) == {"exact", "mixquant-fp8"}
    assert [one.thread_id for one in store.threads(limit=3, offset=3)] == ["t6", "t5", "t4"]
    assert store.threads(TurnFilter(policy="exact"), limit=1)[0].turns == 2
    assert [one.thread_id for one in store.threads(search="t3")] == ["t3"]
    assert not store.threads(TurnFilter(status="bad"))


def test_threads_sums_are_whole_however_old_their_parts(path: Path) -> None:
    early = make_turn(0, thread_id="long", policy="mixquant-fp8")
    between = [make_turn(n, thread_id=f"t{n}") for n in range(1, 70)]
    store = stored(path, early, *between, make_turn(100, thread_id="long"))
    (one,) = store.threads(limit=1)
    assert (one.thread_id, one.turns, one.policies) == ("long", 2, ("exact", "mixquant-fp8"))
    assert store.threads(TurnFilter(since=at(99)))[0].turns == 2, "a filter chooses threads, not parts of them"


def test_page_of_threads_is_full_where_each_ran_under_many_policies(path: Path) -> None:
    turns = [make_turn(n, thread_id=f"t{n // 8}", policy=list(POLICY_PRESETS)[n % 8]) for n in range(30 * 8)]
    store = stored(path, *turns)
    assert [one.thread_id for one in store.threads(limit=25)] == [f"t{n}" for n in range(29, 4, -1)]
    assert {one.turns for one in store.threads(limit=10, offset=25)} == {8}


def test_percentiles_are_exact(path: Path) -> None:
    rng = random.Random(3)  # noqa: S311 # test data
    values = [rng.lognormvariate(-3, 1) for _ in range(200)]
    turns = [
        make_turn(n, queue_seconds=0.0, prefill_seconds=v, delivery_seconds=0.0, ttft_seconds=v, total_seconds=v + 1)
        for n, v in enumerate(values)
    ]
    store = stored(path, *turns)
    assert store.percentiles("ttft", (0.5, 0.95)) == {
        0.5: pytest.approx(percentile(values, 0.5)),
        0.95: pytest.approx(percentile(values, 0.95)),
    }
    assert store.percentiles("ttft", (0.5,), TurnFilter(policy="none")) == {0.5: None}
    with pytest.raises(StoreError, match="no time is called 'speed'"):
        store.percentiles("speed")


def test_tool_time_before_a_turn_counts_parallel_tools_once(path: Path) -> None:
    recorder = StoreRecorder(path)

    def tool(start: float, seconds: float, thread: str = "thread", kind: SpanKind = SpanKind.TOOL) -> None:
        recorder.record_span(
            Span(kind=kind, name="x", span_id=f"{start}", started_at=at(start), seconds=seconds, thread_id=thread)
        )

    recorder.record(make_turn(0, turn_index=0))
    tool(1, 2)
    tool(2, 2)
    tool(6, 1)
    tool(1, 50, thread="another")
    tool(1, 50, kind=SpanKind.NODE)
    tool(11, 3)
    recorder.record(make_turn(10, turn_index=1))
    recorder.record(make_turn(20, turn_index=2))
    recorder.record(make_turn(30, turn_index=3))
    recorder.close()
    store = TurnStore(path)
    assert [turn.tool_seconds_before for turn in store.thread("thread")] == [None, 4.0, 3.0, None]
    assert len(store.spans(thread="thread")) == 5


def test_link_names_the_agent_run_and_node(path: Path) -> None:
    recorder = StoreRecorder(path)
    recorder.link(RunLink("call", "agent-run", "model", "node-run"))
    recorder.record(make_turn(0, run_id="call", turn_id="linked"))
    recorder.record(make_turn(0, run_id="alone", turn_id="unlinked"))
    recorder.close()
    store = TurnStore(path)
    linked, unlinked = store.turn("linked"), store.turn("unlinked")
    assert linked is not None
    assert (linked.root_run_id, linked.node) == ("agent-run", "model")
    assert unlinked is not None
    assert (unlinked.root_run_id, unlinked.node) == ("alone", None)
    assert [turn.turn_id for turn in store.turns(TurnFilter(run="agent-run"))] == ["linked"]


def test_turn_recorded_twice_is_one_turn(path: Path) -> None:
    turn = make_turn(0, turn_id="twice")
    store = stored(path, turn, make_turn(1), turn)
    stored(path, turn)
    assert len(store.turns()) == 2
    assert collect(store, TurnFilter()).total().turns == 2


def test_content_is_off_by_default_and_round_trips_when_on(tmp_path: Path) -> None:
    content = TurnContent(messages=[{"role": "user", "content": "geheim \ud800 ✓"}], answer={"role": "assistant"})
    for on in (False, True):
        recorder = StoreRecorder(tmp_path / f"{on}.sqlite", content=on)
        assert recorder.wants_content is on
        recorder.record(make_turn(0, turn_id="x"), content=content)
        recorder.close()
        store = TurnStore(tmp_path / f"{on}.sqlite")
        turn = store.turn("x")
        assert turn is not None
        assert store.content(turn) == (content if on else None)
        assert (b"geheim" in (tmp_path / f"{on}.sqlite").read_bytes()) is on, "the question stands in its own column"
        assert store.question("thread") == ("geheim \\ud800 ✓" if on else None)


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"until": "x"}, {"since": 1.7e9}, {"status": "fine"}])
def test_filter_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        TurnFilter(**wrong)


def test_reading_cannot_write(path: Path) -> None:
    store = stored(path, make_turn())
    with pytest.raises(StoreError), store.reading() as connection:
        connection.execute("DELETE FROM turns")
    connect_writer(path).close()
    assert len(store.turns()) == 1


def test_reader_holds_up_no_writer(path: Path) -> None:
    store = stored(path, make_turn())
    with store.reading() as connection:
        rows = connection.execute("SELECT * FROM turns")  # an open read transaction
        rows.fetchone()
        assert len(stored(path, make_turn(1)).turns()) == 2
        rows.close()
    assert isinstance(connection, sqlite3.Connection)


def test_store_is_closed_under_no_query(path: Path) -> None:
    """Closing a connection under another thread's query ends the process: a dashboard whose store was replaced."""
    store = stored(path, *(make_turn(n) for n in range(5)))
    with store.reading() as connection:
        rows = connection.execute("SELECT turn_id FROM turns")
        closing = threading.Thread(target=store.close)
        closing.start()
        closing.join()
        assert len(rows.fetchall()) == 5
        with pytest.raises(StoreError, match="it was closed"):
            store.turns()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    store.close()
