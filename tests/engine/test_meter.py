"""One stopwatch: what a client sees, and what an engine that stamps its instants adds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.meter import EngineStamps, TurnMeter
from mixquant_agents.records import TurnCounts, TurnTimes


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5)), max_size=30),
    st.floats(0, 10),
    st.booleans(),
    st.floats(0, 1),
)
def test_times_of_any_arrivals_keep_the_relations(
    steps: list[tuple[float, int]], after: float, as_engine: bool, share: float
) -> None:
    """Whatever arrives when: the relations checked by :class:`TurnTimes` hold, and decode is the sum of the gaps."""
    now = 100.0
    meter = TurnMeter(clock=lambda: now)
    arrivals: list[float] = []
    for gap, tokens in steps:
        now += gap
        meter.token(tokens)
        arrivals += [now] * bool(tokens)
    now += after
    first = arrivals[0] if arrivals else now
    times = meter.times(meter.as_engine(scheduled=100.0 + (first - 100.0) * share) if as_engine else None)
    assert isinstance(times, TurnTimes)
    assert times.total_seconds == pytest.approx(now - 100.0)
    if not arrivals:
        assert times.ttft_seconds is None
        return
    assert times.ttft_seconds == pytest.approx(arrivals[0] - 100.0)
    assert times.decode_seconds == pytest.approx(arrivals[-1] - arrivals[0])
    if len(arrivals) > 1:
        assert times.itl_mean_seconds == pytest.approx(times.decode_seconds / (meter.tokens - 1))
        assert times.itl_p50_seconds <= times.itl_p95_seconds
    assert TurnCounts(decode_tokens=meter.tokens).decode_tokens == sum(tokens for _, tokens in steps)


def metered(*arrivals: tuple[float, int], now: float = 10.0) -> TurnMeter:
    meter = TurnMeter(clock=lambda: now, submitted=0.0)
    for at, tokens in arrivals:
        meter.token(tokens, at)
    return meter


def test_gap_counts_once_for_each_token_of_its_delta() -> None:
    times = metered((1.0, 1), (2.0, 4)).times()
    assert (times.itl_mean_seconds, times.itl_p50_seconds, times.itl_p95_seconds) == (0.25, 0.25, 0.25)
    assert (times.ttft_seconds, times.decode_seconds, times.total_seconds) == (1.0, 1.0, 10.0)
    assert (times.timing_source, times.queue_seconds) == ("client", None)


def test_stamps_tell_queue_prefill_and_delivery_apart() -> None:
    times = metered((2.0, 1), (3.0, 1)).times(EngineStamps(0.5, 1.5, 2.75))
    assert (times.queue_seconds, times.prefill_seconds, times.delivery_seconds) == (0.5, 1.0, 0.5)
    assert (times.ttft_seconds, times.decode_seconds, times.itl_mean_seconds) == (2.0, 1.25, 1.25)
    assert (times.itl_p50_seconds, times.timing_source) == (1.0, "engine")


def test_stamps_of_one_delta_still_tell_the_mean() -> None:
    times = metered((2.0, 5)).times(EngineStamps(0.5, 1.0, 2.0))
    assert (times.decode_seconds, times.itl_mean_seconds, times.itl_p50_seconds) == (1.0, 0.25, None)
    assert metered((2.0, 5)).times().itl_mean_seconds is None, "a client cannot know"


@pytest.mark.parametrize("stamps", [EngineStamps(), EngineStamps(50.0, 60.0, 70.0)])
def test_stamps_that_are_missing_or_of_another_clock_tell_nothing(stamps: EngineStamps) -> None:
    assert metered((2.0, 1), (3.0, 1)).times(stamps) == metered((2.0, 1), (3.0, 1)).times()


def test_queue_of_a_turn_without_tokens_is_known() -> None:
    times = metered().times(EngineStamps(0.5))
    assert (times.queue_seconds, times.ttft_seconds, times.timing_source) == (0.5, None, "engine")
    assert metered().times().timing_source == "client"


instants = st.none() | st.floats(-5, 20)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3)), max_size=8), st.tuples(instants, instants, instants))
def test_times_of_any_stamps_keep_the_relations(steps: list[tuple[float, int]], stamps: tuple[Any, ...]) -> None:
    now, arrivals = 0.0, []
    for gap, tokens in steps:
        now += gap
        arrivals.append((now, tokens))
    times = metered(*arrivals, now=now).times(EngineStamps(*stamps))  # construction checks the relations
    assert times.total_seconds is not None
    assert times.total_seconds >= now
