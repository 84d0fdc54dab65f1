"""Figures, histograms, roll-ups, speed-ups and comparisons say what the turns themselves say."""

from __future__ import annotations

import random
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from telemetry_help import at, make_turn, stored

from mixquant_agents.dashboard.views import overview_charts
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.analysis.collect import MOST_INTERVALS, collect
from mixquant_agents.telemetry.analysis.overview import compare, overview
from mixquant_agents.telemetry.store.aggregate import Aggregate, bin_of, bin_value, histogram_percentile
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.rows import to_microseconds


@given(st.lists(st.floats(min_value=1e-6, max_value=1e4), min_size=1, max_size=300), st.floats(0, 1))
def test_histogram_is_at_most_two_percent_off(values: list[float], share: float) -> None:
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
        slow = collect(store, chosen, now=now)
        assert slow.values is not None
        monkeypatch.setattr("mixquant_agents.telemetry.analysis.collect.EXACT_TURNS", 0)
        fast = collect(store, chosen, now=now)
        monkeypatch.undo()
        assert fast.values is None
        one, two = slow.total(), fast.total()
        if chosen.until is None:  # roll-ups answer for whole intervals
            assert (one.turns, one.failed, one.aborted) == (two.turns, two.failed, two.aborted)
            assert one.bins == two.bins
            assert two.sums == pytest.approx(one.sums)
            assert two.strata.keys() == one.strata.keys()
            assert sum(part.turns for _, part in fast.intervals()[1]) == one.turns
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
        slow = collect(store, chosen, now=now)
        monkeypatch.setattr("mixquant_agents.telemetry.analysis.collect.EXACT_TURNS", 0)
        fast = collect(store, chosen, now=now)
        monkeypatch.undo()
        assert slow.values is not None
        assert fast.values is None
        one, two = slow.total(), fast.total()
        assert one.turns > 0
        assert (one.turns, one.failed, one.aborted) == (two.turns, two.failed, two.aborted)
        meant = [turn for turn in turns if policy in (None, turn.policy)]
        bad = sum((turn.aborted, turn.error is not None) != (False, False) for turn in meant)
        both = sum((turn.aborted, turn.error is not None) == (True, True) for turn in meant)
        assert both > 5
        assert one.bad == two.bad == (0 if status == "ok" else bad if status == "bad" else one.turns)
        assert one.bins == two.bins
        assert two.sums == pytest.approx(one.sums)
        assert {name: values[0] for name, values in one.strata.items()} == {
            name: values[0] for name, values in two.strata.items()
        }
        assert not fast.truncated


def test_rate_is_over_the_time_that_was_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(path, *(make_turn(3000 + n) for n in range(60)))
    young = overview(store, now=to_microseconds(at(3060)) / 1e6)
    assert (young.since, young.turns_per_minute) == (at(3000), pytest.approx(60)), "from the first turn, not its hour"
    monkeypatch.setattr("mixquant_agents.telemetry.analysis.collect.EXACT_TURNS", 0)
    late = overview(store, TurnFilter(since=at(3000), until=at(3010)), now=to_microseconds(at(86400 * 5)) / 1e6)
    assert (late.figures.turns, late.since, late.until) == (60, at(0), at(3600)), "minutes are not kept that long"
    assert late.turns_per_minute == pytest.approx(1)


def test_speed_up_needs_one_known_device(path: Path) -> None:
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


def test_comparison_never_mixes_models_or_devices(path: Path) -> None:
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


def test_speed_up_needs_a_measured_baseline_of_like_size(path: Path) -> None:
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


def test_aggregate_merges_as_if_counted_at_once() -> None:
    turns = [make_turn(n, decode_tokens=n, error="x" if n % 2 else None) for n in range(10)]
    halves = Aggregate.of(turns[:4])
    halves.merge(Aggregate.of(turns[4:]))
    whole = Aggregate.of(turns)
    assert (halves.turns, halves.failed, halves.bins) == (whole.turns, whole.failed, whole.bins)
    assert halves.sums == pytest.approx(whole.sums)
    assert Aggregate.load(*whole.dump()) == whole


def test_empty_intervals_are_shown(path: Path) -> None:
    store = stored(path, *(make_turn(60 * minute) for minute in (0, 1, 1, 16)))
    now = to_microseconds(at(60 * 19)) / 1e6
    seen = overview(store, TurnFilter(since=at(0)), now=now)
    assert seen.interval_seconds == 60
    assert [point.turns for point in seen.points] == [1, 2, *[0] * 14, 1, 0, 0]
    assert [point.at for point in seen.points] == [at(60 * minute) for minute in range(19)]
    quiet = seen.points[5]
    assert (quiet.ttft_p50, quiet.cache_hit_share, quiet.prefill_tokens_per_second) == (None, None, None)
    chart = str(overview_charts(seen)[1])
    assert chart.count('class="hit"') == 19
    assert chart.count("<polyline") == 2, "p50 and p95 of the first two minutes"
    assert chart.count("dot") == 2, "and of the last turn, alone"


@pytest.mark.parametrize(("seconds", "length"), [(20, 1), (200, 5), (800, 15), (1000, 60)])
def test_window_of_minutes_shows_seconds(path: Path, seconds: int, length: int) -> None:
    store = stored(path, *(make_turn(n * seconds / 10) for n in range(10)))
    seen = overview(store, TurnFilter(since=at(0)), now=to_microseconds(at(seconds)) / 1e6)
    assert seen.interval_seconds == length
    assert sum(point.turns for point in seen.points) == 10
    assert max(point.turns for point in seen.points) <= 2, "no single bar"


@given(starts=st.lists(st.integers(0, 400 * 86_400), min_size=1, max_size=30), quiet=st.integers(1, 40_000 * 86_400))
@example(starts=[0], quiet=2700)
def test_intervals_are_few_and_hold_every_turn(starts: list[int], quiet: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder) / "turns.sqlite", *(make_turn(start) for start in starts))
        now = to_microseconds(at(max(starts) + quiet)) / 1e6
        seen = overview(store, now=now)
        store.close()
    assert sum(point.turns for point in seen.points) == len(starts)
    assert len(seen.points) <= MOST_INTERVALS + 1
    instants = [to_microseconds(point.at) for point in seen.points]
    assert {later - earlier for earlier, later in pairwise(instants)} <= {seen.interval_seconds * 1_000_000}
    assert instants[0] <= to_microseconds(at(min(starts)))
    # The window ends now: at a boundary the next interval has not begun.
    assert instants[-1] / 1e6 < now <= instants[-1] / 1e6 + seen.interval_seconds


def test_time_per_token_with_drafts_and_without(path: Path) -> None:
    def turn(number: int, policy: str, seconds: float, device: str = "NVIDIA H200", **more: Any) -> TurnRecord:
        return make_turn(
            number, policy=policy, device=device, decode_tokens=101, decode_seconds=seconds, total_seconds=9.0, **more
        )

    drafts = {"draft_cycles": 30, "drafted_tokens": 90, "accepted_tokens": 70}
    store = stored(
        path, turn(1, "drafting", 0.4, **drafts), turn(2, "drafting", 0.6, **drafts), turn(3, "exact", 1.0),
        turn(4, "exact", 9.0, device="another"),
    )  # fmt: skip
    pace = overview(store).draft_pace
    assert pace is not None
    assert pace.drafting == pytest.approx(0.005)
    assert pace.without == pytest.approx(0.01), "of the same device"
    assert overview(store, TurnFilter(policy="drafting")).draft_pace == pace
    assert overview(store, TurnFilter(policy="exact")).draft_pace is None


def test_time_per_token_of_drafts_alone(path: Path) -> None:
    drafts = {"draft_cycles": 30, "drafted_tokens": 90, "accepted_tokens": 70}
    pace = overview(
        stored(path, make_turn(1, decode_tokens=11, decode_seconds=0.1, total_seconds=9.0, **drafts))
    ).draft_pace
    assert pace is not None
    assert (pace.drafting, pace.without) == (pytest.approx(0.01), None)
    assert overview(stored(path.with_name("plain.db"), make_turn(1))).draft_pace is None
