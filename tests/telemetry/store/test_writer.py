"""Events that SQLite refuses, clocks that were set, a name that is taken over: no event holds up or harms another."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from telemetry_help import at, make_turn

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry import Retention, RunLink, Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.analysis.collect import collect
from mixquant_agents.telemetry.events import TurnContent, TurnEvent
from mixquant_agents.telemetry.recorder import QueueRecorder
from mixquant_agents.telemetry.store.connection import connect_writer, default_store_path
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.retention import retain
from mixquant_agents.telemetry.store.rows import to_microseconds
from mixquant_agents.telemetry.store.writer import StoreSink


def test_sink_that_raises_anywhere_stops_no_other(path: Path) -> None:
    class Odd:
        def write(self, batch: Any) -> None: ...

        def retry_seconds(self) -> float | None:
            raise RuntimeError("when?")

        def lost(self) -> int:
            return 0

        def close(self) -> None: ...

    recorder = StoreRecorder(path, sinks=[Odd()], gather_seconds=0)
    for n in range(3):
        recorder.record(make_turn(n))
        recorder.flush(0.05)
    recorder.close()
    assert recorder.problem == "RuntimeError: when?"
    assert len(TurnStore(path).turns()) == 3


def test_pending_events_are_bounded_whatever_keeps_the_store_shut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mixquant_agents.telemetry.store.writer.connect_writer", forbidden)
    sink = StoreSink(path, pending_limit=5)
    for n in range(3):
        with pytest.raises(PermissionError):
            sink.write([TurnEvent(turn=make_turn(n)), TurnEvent(turn=make_turn(n))])
    assert sink.lost() == 1
    monkeypatch.undo()
    sink.write([])
    sink.close()
    assert len(TurnStore(path).turns()) == 5


def test_prompts_that_wait_are_bounded_in_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that stays full for a weekend must not fill the memory: the turns wait, the later ones without prompt."""
    monkeypatch.setattr("mixquant_agents.telemetry.store.writer.PENDING_BYTES", 10_000)
    noise = random.Random(1).randbytes(2_000).hex()  # noqa: S311 # test data
    path.parent.write_text("a file where the store's folder should be")
    sink = StoreSink(path)
    for n in range(20):
        content = TurnContent(messages=[{"role": "user", "content": f"{n} {noise}"}])
        event = TurnEvent(turn=make_turn(n, turn_id=f"t{n}"), prompt_token_ids=range(320), content=content)
        with pytest.raises(StoreError):
            sink.write([event])
        assert sink._pending_bytes <= 10_000
    assert sink.lost() == 0
    assert caplog.text.count("wait without prompt and messages") == 1
    path.parent.unlink()
    sink.write([])
    assert sink._pending_bytes == 0
    sink.close()
    store = TurnStore(path)
    turns = {turn.turn_id: turn for turn in store.turns()}
    assert len(turns) == 20
    assert store.content(turns["t0"]) is not None
    assert store.content(turns["t19"]) is None
    with store.reading() as connection:
        kept = [row[0] for row in connection.execute("SELECT length(hashes) FROM blocks ORDER BY turn")]
    assert 0 < len(kept) < 20
    assert set(kept) == {320 // 16 * 8}


def test_event_that_comes_with_every_turn_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = StoreRecorder(path)
    for n in range(10):
        recorder.record(make_turn(n), prompt_token_ids=["no", "token"])  # type: ignore[list-item]
    recorder.close()
    assert len(TurnStore(path).turns()) == 10
    assert caplog.text.count("could not be written and is left out") == 1


def test_tilde_in_the_environment_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIXQUANT_STORE", "~/turns.sqlite")
    assert default_store_path() == tmp_path / "turns.sqlite"


def tool(**values: Any) -> Span:
    base: dict[str, Any] = {
        "kind": SpanKind.TOOL, "name": "tool", "span_id": "s", "started_at": at(0), "seconds": 1.0, "thread_id": "t",
    }  # fmt: skip
    return Span(**{**base, **values})


@pytest.mark.parametrize(
    ("awkward", "kept"),
    [
        ({"thread_id": "t\ud800"}, {"thread_id": "t\\ud800"}),
        ({"error": "no such file 'x\udcff'"}, {"error": "no such file 'x\\udcff'"}),
        ({"tool_calls": ("a\ud800",)}, {"tool_calls": ("a\ud800",)}),
        ({"total_seconds": math.inf}, {"total_seconds": None, "ttft_seconds": 0.043}),
        ({"reasoning_tokens": 2**70}, {"reasoning_tokens": None, "decode_tokens": 51}),
        ({"thread_id": "a\0b", "turn_id": "x"}, {"thread_id": "a\0b"}),
        ({"thread_id": "'; DROP TABLE turns; --"}, {"thread_id": "'; DROP TABLE turns; --"}),
        ({"thread_id": ""}, {"thread_id": ""}),
        ({"error": "x" * 3_000_000, "model": "m\ud800"}, {"error": "x" * 1_000_000, "model": "m\\ud800"}),
        ({"started_at": "0001-01-01T00:00:00+00:00"}, {"started_at": "0001-01-01T00:00:00.000000+00:00"}),
        ({"started_at": "9999-12-31T23:59:59+00:00"}, {"started_at": "9999-12-31T23:59:59.000000+00:00"}),
        ({"prompt_tokens": None, "cached_tokens": None, "prefill_tokens": None}, {"prompt_tokens": None}),
    ],
)
def test_awkward_turn_is_kept_as_far_as_it_can_be(
    tmp_path: Path, awkward: dict[str, Any], kept: dict[str, Any]
) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path, content=True)  # errors are kept whole
    recorder.record(make_turn(turn_id="before"))
    recorder.record(make_turn(**{"turn_id": "awkward", **awkward}))
    recorder.record(make_turn(turn_id="behind"))
    assert recorder.flush(30)
    recorder.record(make_turn(turn_id="later"))
    recorder.close()
    assert (recorder.problem, recorder.dropped) == (None, 0)
    store = TurnStore(path)
    found = {turn.turn_id: turn for turn in store.turns()}
    assert found.keys() == {"before", "behind", "later", awkward.get("turn_id", "awkward")}
    turn = found[awkward.get("turn_id", "awkward")]
    assert {name: getattr(turn, name) for name in kept} == kept
    if turn.thread_id:
        assert turn.turn_id in {one.turn_id for one in store.thread(turn.thread_id)}
    assert collect(store, TurnFilter(until="9999-12-31T23:59:59.9Z")).total().turns == 4


@pytest.mark.parametrize("awkward", [{"seconds": math.nan}, {"seconds": math.inf}, {"name": None}])
def test_span_without_a_duration_or_name_is_left_out_and_counted(tmp_path: Path, awkward: dict[str, Any]) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="before"))
    recorder.record_span(tool(**awkward))
    recorder.record_span(tool(span_id="good", result="\ud800"))
    recorder.record(make_turn(turn_id="behind"))
    assert recorder.flush(30)
    recorder.close()
    assert (recorder.problem, recorder.dropped) == (None, 1)
    store = TurnStore(path)
    assert len(store.turns()) == 2
    assert [span.span_id for span in store.spans(thread="t")] == ["good"]


TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
SECONDS = st.none() | st.floats(min_value=0)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            lambda thread, error, model, itl, tokens: {
                "thread_id": thread, "error": error, "model": model, "itl_mean_seconds": itl, "decode_tokens": tokens,
            },
            st.none() | TEXT, st.none() | TEXT, TEXT, SECONDS, st.none() | st.integers(min_value=0),
        ),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_turn_is_never_lost_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, turns: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "turns.sqlite"
    recorder = StoreRecorder(path, gather_seconds=0.0)
    for values in turns:
        recorder.record(make_turn(**values))
    recorder.close()
    assert (recorder.problem, recorder.dropped) == (None, 0)
    assert len(TurnStore(path).turns()) == len(turns)


def test_reader_refuses_what_no_store_can_hold(tmp_path: Path) -> None:
    connect_writer(tmp_path / "turns.sqlite").close()
    store = TurnStore(tmp_path / "turns.sqlite")
    with pytest.raises(StoreError):
        store.thread("\ud800")
    with pytest.raises(StoreError):
        store.turns(limit=2**80)


@pytest.mark.slow
def test_links_and_tool_times_survive_a_retry(tmp_path: Path) -> None:
    """Link and tools came in an earlier batch than the turn whose writing failed at first."""
    path = tmp_path / "turns.sqlite"
    sink = StoreSink(path)
    recorder = QueueRecorder([sink], gather_seconds=0.0)
    recorder.link(RunLink("call", "agent-run", "model", None))
    recorder.record_span(tool(thread_id="thread", seconds=2.0))
    assert recorder.flush(30)
    blocker = connect_writer(path)
    assert sink._connection is not None
    sink._connection.execute("PRAGMA busy_timeout = 50")
    blocker.execute("BEGIN IMMEDIATE")
    recorder.record(make_turn(10, turn_id="late", run_id="call"))
    assert recorder.flush(0.3) is False
    assert "lock" in (recorder.problem or "")
    blocker.execute("ROLLBACK")
    blocker.close()
    assert recorder.flush(30)
    recorder.close()
    turn = TurnStore(path).turn("late")
    assert turn is not None
    assert (turn.root_run_id, turn.node, turn.tool_seconds_before) == ("agent-run", "model", 2.0)


def test_retention_asks_the_time_though_the_clock_was_wrong(tmp_path: Path) -> None:
    path, day = tmp_path / "turns.sqlite", 86_400
    recorder = StoreRecorder(path)
    for n in range(30):
        recorder.record(make_turn(4_000 * day + n, turn_id=f"future-{n}"))  # then the clock was set right
    for n in range(30):
        recorder.record(make_turn(n * day, turn_id=f"d{n}"))
    recorder.close()
    connection = connect_writer(path)
    now = to_microseconds(at(29 * day + 1)) / 1e6
    assert retain(connection, Retention(max_age_days=10), now=now, seconds=60) == 20
    connection.close()
    left = {turn.turn_id for turn in TurnStore(path).turns(limit=99)}
    assert left == {f"future-{n}" for n in range(30)} | {f"d{n}" for n in range(20, 30)}


def test_store_put_in_the_place_of_ours_is_written_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="old"))
    assert recorder.flush()
    other = tmp_path / "other.sqlite"
    connect_writer(other).close()
    path.rename(tmp_path / "away.sqlite")  # as a rotation of files would
    other.rename(path)
    for ending in ("-wal", "-shm"):
        Path(f"{path}{ending}").rename(tmp_path / f"away.sqlite{ending}")
    recorder.record(make_turn(turn_id="new"))
    assert recorder.flush(30)
    recorder.close()
    assert [turn.turn_id for turn in TurnStore(path).turns()] == ["new"]
    assert [turn.turn_id for turn in TurnStore(tmp_path / "away.sqlite").turns()] == ["old"]


def test_reading_goes_on_while_retention_deletes(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    for n in range(300):
        recorder.record(make_turn(n, turn_id=f"t{n}"))
    recorder.close()
    store = TurnStore(path)
    connection = connect_writer(path)
    with store.reading() as reading:
        rows = reading.execute("SELECT turn_id FROM turns ORDER BY id")
        first = rows.fetchone()
        assert retain(connection, Retention(max_age_days=1), now=to_microseconds(at(10**6)) / 1e6, seconds=60) == 300
        assert [first[0], *(row[0] for row in rows)] == [f"t{n}" for n in range(300)], "one reader sees one moment"
    assert store.turns() == []
    connection.close()
