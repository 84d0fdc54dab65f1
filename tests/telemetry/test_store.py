"""What is recorded is what is read: every field, by thread, run, model, policy and time; tools, roll-ups, retention."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry_help import at, make_turn

from mixquant_agents.errors import ConfigError, RequestError, StoreError
from mixquant_agents.records import TurnRecord, percentile
from mixquant_agents.telemetry import Retention, RunLink, Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.bins import Aggregate, bin_of, bin_value, histogram_percentile
from mixquant_agents.telemetry.connect import connect_writer
from mixquant_agents.telemetry.filters import TurnFilter
from mixquant_agents.telemetry.gather import gather
from mixquant_agents.telemetry.overview import compare, overview
from mixquant_agents.telemetry.retention import retain
from mixquant_agents.telemetry.rows import from_microseconds, to_microseconds
from mixquant_agents.telemetry.store import TurnStore


def stored(path: Path, *turns: TurnRecord, **options: Any) -> TurnStore:
    recorder = StoreRecorder(path, **options)
    for turn in turns:
        recorder.record(turn)
    recorder.close()
    assert recorder.problem is None
    assert recorder.dropped == 0
    return TurnStore(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "turns.sqlite"


def test_every_field_comes_back(path: Path) -> None:
    full = make_turn(
        1.234567, recomputed_rows=3, preemptions=1, reasoning_tokens=7, transfer_seconds=0.1, aborted=True,
        error="EngineDeadError: gone", tool_calls=("a", "b, \"c\""), emulated=True, turn_index=4, finish_reason="abort",
    )  # fmt: skip
    bare = TurnRecord(turn_id="bare", model="m", engine="openai", policy="exact", started_at=at(2))
    store = stored(path, full, bare)
    for turn in (full, bare):
        found = store.turn(turn.turn_id)
        assert found is not None
        assert TurnRecord(**{name: getattr(found, name) for name in TurnRecord.model_fields}) == turn
    assert store.turn("nobody") is None


def test_a_new_field_of_the_record_needs_a_column(path: Path) -> None:
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


@settings(max_examples=60)
@given(st.lists(st.floats(min_value=1e-6, max_value=1e4), min_size=1, max_size=300), st.floats(0, 1))
def test_a_histogram_is_at_most_two_percent_off(values: list[float], share: float) -> None:
    histogram: dict[int, int] = {}
    for value in values:
        histogram[bin_of(value)] = histogram.get(bin_of(value), 0) + 1
    place = sorted(values)[int(share * (len(values) - 1))]
    assert histogram_percentile(histogram, share) == pytest.approx(place, rel=0.0201)
    assert bin_of(bin_value(bin_of(place))) == bin_of(place)


def test_rollups_say_the_same_as_the_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)  # noqa: S311 # test data
    turns = []
    for n in range(600):
        prefill = rng.randint(1, 3000)
        cached = rng.randint(0, 4000)
        seconds = rng.lognormvariate(-3, 0.5)
        turns.append(
            make_turn(
                n * 500, thread_id=f"t{n // 6}", policy=rng.choice(["exact", "mixquant-fp8"]), cached_tokens=cached,
                prompt_tokens=cached + prefill, prefill_tokens=prefill, quantized_tokens=prefill, exact_tokens=0,
                prefill_seconds=seconds, ttft_seconds=0.003 + seconds, total_seconds=2 + seconds,
                error="x" if n % 50 == 0 else None, aborted=n % 70 == 1,
            )
        )  # fmt: skip
    store = stored(path, *turns)
    now = to_microseconds(at(600 * 500)) / 1e6
    for chosen in (TurnFilter(), TurnFilter(policy="exact"), TurnFilter(since=at(0), until=at(86400 * 2))):
        slow = gather(store, chosen, now=now)
        assert slow.values is not None
        monkeypatch.setattr("mixquant_agents.telemetry.gather.EXACT_TURNS", 0)
        fast = gather(store, chosen, now=now)
        monkeypatch.undo()
        assert fast.values is None
        one, two = slow.total(), fast.total()
        if chosen.until is None:  # roll-ups answer for whole intervals
            assert (one.turns, one.failed, one.aborted) == (two.turns, two.failed, two.aborted)
            assert one.bins == two.bins
            assert two.sums == pytest.approx(one.sums)
            assert two.strata.keys() == one.strata.keys()
            assert sum(part.turns for _, part in fast.intervals()) == one.turns
            assert overview(store, chosen, now=now).figures.percentiles["ttft"][0] == pytest.approx(
                two.percentile("ttft", 0.5), rel=0.05
            )


@pytest.mark.parametrize("status", ["ok", "bad", "failed", "aborted"])
def test_rollups_by_outcome_say_the_same_as_the_turns(path: Path, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    rng = random.Random(6)  # noqa: S311 # test data
    turns = [
        make_turn(
            n * 700, policy=rng.choice(["exact", "mixquant-fp8"]), error="x" if rng.random() < 0.2 else None,
            aborted=rng.random() < 0.2, total_seconds=1 + rng.random(), decode_tokens=rng.randint(1, 90),
        )
        for n in range(400)
    ]  # fmt: skip
    store = stored(path, *turns)
    now = to_microseconds(at(400 * 700)) / 1e6
    for policy in (None, "exact"):
        chosen = TurnFilter(status=status, policy=policy)
        slow = gather(store, chosen, now=now)
        monkeypatch.setattr("mixquant_agents.telemetry.gather.EXACT_TURNS", 0)
        fast = gather(store, chosen, now=now)
        monkeypatch.undo()
        assert slow.values is not None
        assert fast.values is None
        one, two = slow.total(), fast.total()
        assert one.turns > 0
        assert (one.turns, one.failed, one.aborted) == (two.turns, two.failed, two.aborted)
        assert one.bins == two.bins
        assert two.sums == pytest.approx(one.sums)
        assert {name: values[0] for name, values in one.strata.items()} == {
            name: values[0] for name, values in two.strata.items()
        }
        assert not fast.truncated


def test_a_speed_up_needs_one_known_device(path: Path) -> None:
    def run(policy: str, device: str | None, seconds: float) -> list[TurnRecord]:
        more = {"prefill_seconds": seconds, "delivery_seconds": 0.0, "ttft_seconds": 0.002 + seconds}
        return [make_turn(n, policy=policy, device=device, total_seconds=10.0, **more) for n in range(9)]

    both = TurnFilter(policy="exact"), TurnFilter(policy="mixquant-fp8")
    store = stored(path, *run("mixquant-fp8", None, 0.1), *run("exact", None, 0.3))
    assert not overview(store).speed_ups
    assert "do not say on which device" in (overview(store).no_speed_up or "")
    assert "do not say on which device" in (compare(store, *both).note or "")
    assert compare(store, *both).prefill_speed_up is None
    store = stored(path, *run("mixquant-fp8", "NVIDIA H200", 0.1), *run("exact", "cpu", 9.0))
    assert not overview(store).speed_ups, "another device is no baseline"
    assert "no model ran on the same device" in (compare(store, *both).note or "")
    store = stored(path, *run("exact", "NVIDIA H200", 0.2))
    (up,) = overview(store).speed_ups
    assert (up.device, up.prefill) == ("NVIDIA H200", pytest.approx(2.0))


def test_a_comparison_never_mixes_models_or_devices(path: Path) -> None:
    """Each model and device is compared with itself; what only one side ran does not count."""

    def run(policy: str, seconds: float, **more: Any) -> list[TurnRecord]:
        times = {"prefill_seconds": seconds, "delivery_seconds": 0.0, "ttft_seconds": 0.002 + seconds}
        return [make_turn(n, policy=policy, total_seconds=90.0, **times, **more) for n in range(9)]

    store = stored(
        path,
        *run("exact", 0.2), *run("mixquant-fp8", 0.1),
        *run("exact", 2.0, model="large"), *run("mixquant-fp8", 1.0, model="large"),
        *run("exact", 50.0, device=None), *run("mixquant-fp8", 0.001, device="another"),
        *run("exact", 80.0, model="only here"),
    )  # fmt: skip
    seen = compare(store, TurnFilter(policy="exact"), TurnFilter(policy="mixquant-fp8"))
    assert seen.prefill_speed_up is not None
    assert seen.prefill_speed_up[0] == pytest.approx(2.0)
    assert seen.matched_turns == (18, 18)


def test_a_speed_up_needs_a_measured_baseline_of_like_size(path: Path) -> None:
    def run(policy: str, tokens: int, per_token: float, **more: Any) -> list[TurnRecord]:
        return [
            make_turn(
                n, policy=policy, prompt_tokens=tokens, cached_tokens=0, prefill_tokens=tokens, quantized_tokens=0,
                exact_tokens=tokens, prefill_seconds=tokens * per_token * (1 + 0.01 * (n % 3)), delivery_seconds=0.0,
                ttft_seconds=0.002 + tokens * per_token * (1 + 0.01 * (n % 3)), total_seconds=99.0, **more,
            )
            for n in range(12)
        ]  # fmt: skip

    store = stored(path, *run("mixquant-fp8", 1000, 1e-4), *run("exact", 100, 9e-4))
    seen = overview(store)
    assert not seen.speed_ups, "sizes differ: nothing may be said"
    assert "like size" in (seen.no_speed_up or "")
    assert compare(store, TurnFilter(policy="exact"), TurnFilter(policy="mixquant-fp8")).prefill_speed_up is None

    store = stored(path, *run("exact", 1010, 1.5e-4), *run("mixquant-nvfp4", 1000, 5e-4, emulated=True))
    (up,) = overview(store).speed_ups
    assert up.policy == "mixquant-fp8"
    assert up.prefill == pytest.approx(1.5, rel=0.001)
    assert up.low < 1.5 < up.high
    assert (up.turns, up.baseline_turns, up.covered) == (12, 12, 1.0)
    assert overview(store, TurnFilter(policy="mixquant-fp8")).speed_ups == [up], "the baseline counts behind the filter"
    assert not overview(store, TurnFilter(policy="mixquant-nvfp4")).speed_ups
    emulated = compare(store, TurnFilter(policy="exact"), TurnFilter(policy="mixquant-nvfp4"))
    assert emulated.prefill_speed_up is None
    assert "emulation" in (emulated.note or "")


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


def test_a_link_names_the_agent_run_and_node(path: Path) -> None:
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


def test_the_same_turn_twice_is_one_turn(path: Path) -> None:
    turn = make_turn(0, turn_id="twice")
    store = stored(path, turn, make_turn(1), turn)
    stored(path, turn)
    assert len(store.turns()) == 2
    assert gather(store, TurnFilter()).total().turns == 2


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
        assert (b"geheim" in (tmp_path / f"{on}.sqlite").read_bytes()) is False


def test_retention_by_age_deletes_all_that_belongs(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    for n in range(40):
        recorder.record_span(
            Span(
                kind=SpanKind.TOOL,
                name="x",
                span_id=f"s{n}",
                started_at=at(n * 86400 - 1),
                seconds=1,
                thread_id=f"t{n}",
            )
        )
        recorder.record(
            make_turn(n * 86400, thread_id=f"t{n}"), content=TurnContent(), prompt_token_ids=list(range(64))
        )
    recorder.record(make_turn(39 * 86400 + 1, thread_id="t5"))
    recorder.close()
    connection = connect_writer(path)
    now = to_microseconds(at(39 * 86400 + 10)) / 1e6
    assert retain(connection, Retention(max_age_days=10), now=now, seconds=60) == 30
    store = TurnStore(path)
    assert len(store.turns(limit=99)) == 11
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 # our names
        for table in ("blocks", "contents", "spans", "thread_stats")
    }
    assert counts == {"blocks": 10, "contents": 10, "spans": 9, "thread_stats": 11}
    assert [one.turns for one in store.threads(TurnFilter(thread="t5"))] == [1], "the half that stays is counted anew"
    assert gather(store, TurnFilter(), now=now).total().turns == 11
    assert connection.execute("SELECT min(start) FROM rollups WHERE level = 86400").fetchone()[
        0
    ] * 10**6 > to_microseconds(at(28 * 86400))


def test_retention_by_size_keeps_the_newest_and_gives_space_back(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    noise = random.Random(1).randbytes(4000).hex()  # noqa: S311 # test data
    for n in range(1000):
        recorder.record(make_turn(n), content=TurnContent(messages=[{"role": "user", "content": f"{n}{noise}"}]))
    recorder.close()
    before = path.stat().st_size
    connection = connect_writer(path)
    limit = before // 2
    assert retain(connection, Retention(max_bytes=limit), seconds=60) > 0
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert path.stat().st_size < before
    newest = TurnStore(path).turns(limit=2000)
    assert 0 < len(newest) < 1000
    assert newest[0].started_at == at(999)


@pytest.mark.parametrize("wrong", [{"max_age_days": 0}, {"max_age_days": -1}, {"max_bytes": 5}])
def test_retention_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Retention(**wrong)


@pytest.mark.parametrize("wrong", [{"since": "yesterday"}, {"until": "x"}, {"status": "fine"}])
def test_a_filter_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        TurnFilter(**wrong)


def test_reading_cannot_write(path: Path) -> None:
    store = stored(path, make_turn())
    with pytest.raises(StoreError), store.reading() as connection:
        connection.execute("DELETE FROM turns")
    connect_writer(path).close()
    assert len(store.turns()) == 1


def test_an_aggregate_merges_as_if_counted_at_once() -> None:
    turns = [make_turn(n, decode_tokens=n, error="x" if n % 2 else None) for n in range(10)]
    halves = Aggregate.of(turns[:4])
    halves.merge(Aggregate.of(turns[4:]))
    whole = Aggregate.of(turns)
    assert (halves.turns, halves.failed, halves.bins) == (whole.turns, whole.failed, whole.bins)
    assert halves.sums == pytest.approx(whole.sums)
    assert Aggregate.load(*whole.dump()) == whole


def test_no_reader_holds_up_the_writer(path: Path) -> None:
    store = stored(path, make_turn())
    with store.reading() as connection:
        rows = connection.execute("SELECT * FROM turns")  # an open read transaction
        rows.fetchone()
        assert len(stored(path, make_turn(1)).turns()) == 2
        rows.close()
    assert isinstance(connection, sqlite3.Connection)
