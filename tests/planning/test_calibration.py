"""Step times out of a calibration: of times that known steps would take, these steps come out again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixquant_agents.planning.calibration import Calibration, Writers

ROWS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
BUDGET, CONTEXT = 2048, 8192
STEP = {rows: 0.008 + 22e-6 * rows for rows in ROWS}


def first_token(rows: int, context: int, latency: float, token: float, attention: float) -> float:
    """Seconds until the first token on an engine whose steps take ``STEP`` and attention."""
    seconds = latency + token * (rows + context)
    for begin in range(0, rows, BUDGET):
        size = min(BUDGET, rows - begin)
        seconds += STEP[size] + attention * size * (context + begin)
    return seconds


def calibration(
    latency: float, token: float, attention: float, measured: float | None = None, **fields: object
) -> Calibration:
    parts = latency, token, attention
    return Calibration(
        latency=measured,
        budget=BUDGET,
        cold=tuple((rows, first_token(rows, 0, *parts)) for rows in ROWS),
        warm=tuple((rows, first_token(rows, CONTEXT, *parts)) for rows in ROWS[4:]),
        context=CONTEXT,
        decode=((1, 0.005), (8, 0.0052)),
        decode_context=56,
        **fields,  # type: ignore[arg-type]  # the fields of Calibration
    )


@settings(max_examples=30)
@given(latency=st.floats(0, 0.007), token=st.floats(0, 3e-6), attention=st.floats(0, 3e-9))
def test_time_to_first_token_is_taken_apart(latency: float, token: float, attention: float) -> None:
    steps = calibration(latency, token, attention).steps("test")
    assert steps.latency == pytest.approx(latency, abs=1e-6)
    assert steps.latency_token == pytest.approx(token, abs=1e-9)
    assert steps.attention == pytest.approx(attention, abs=1e-12)
    assert dict(steps.prefill) == pytest.approx({rows: STEP[rows] for rows in ROWS if rows <= BUDGET}, abs=1e-5)
    assert steps.way + sum(steps.front_end(1000)) == pytest.approx(latency + 1000 * token, abs=1e-5)


def test_measured_latency_is_kept() -> None:
    """A writer beside a prompt shows it directly; the others follow from it."""
    steps = calibration(0.004, 1.5e-6, 1e-9, measured=0.004).steps("test")
    assert steps.latency == 0.004
    assert steps.latency_token == pytest.approx(1.5e-6)


TOKENS = sorted({*ROWS, *(CONTEXT + rows for rows in ROWS[4:])})
BEFORE = tuple((at, 0.003 + 0.2e-6 * at) for at in TOKENS)
BEHIND = tuple((at, 0.001 + 0.1e-6 * at) for at in TOKENS)


def test_stamps_of_an_engine_say_what_a_token_costs_outside_of_the_steps() -> None:
    """Then attention alone is left to be told from the steps. Of 6 ms that a writer beside a prompt does not wait, 4
    are outside; in the other 2 the idle engine prepared the step, and a busy one does that during the step before."""
    beside = ((1, -0.006), (16, -0.006 + 0.01))
    steps = calibration(0.006, 0.3e-6, 1e-9, before=BEFORE, behind=BEHIND, beside=beside).steps("test")
    assert steps.latency_token == pytest.approx(0.3e-6)
    assert steps.attention == pytest.approx(1e-9)
    assert steps.front_end(10_000) == pytest.approx((0.002, 0.001))
    assert (steps.way, steps.launch) == pytest.approx((0.004, 0.002))
    assert dict(steps.prefill)[1024] == pytest.approx(STEP[1024])
    added = steps.seconds([(1024, 0)], [56] * 16) - steps.seconds([(1024, 0)], [])
    assert added == pytest.approx(0.01, abs=1e-6)


def test_writers_with_a_number_format_of_their_own_make_a_prompts_step_longer() -> None:
    """One writer beside it waits 30 ms longer than the prompt's step takes alone: the weights are read once more."""
    beside = ((1, -0.004 + 0.03), (16, -0.004 + 0.05))
    steps = calibration(0.004, 0.3e-6, 1e-9, before=BEFORE, behind=BEHIND, beside=beside).steps("test")
    assert steps.launch == 0
    assert steps.seconds([(512, 0)], [56]) == pytest.approx(STEP[512] + 0.03, abs=1e-6)


def test_nothing_is_negative_and_nothing_is_made_up() -> None:
    noisy = Calibration(cold=((8, 0.01), (16, 0.009)), warm=((16, 0.001),), context=64, decode=((1, 0.002), (2, 0.001)))
    steps = noisy.steps("test")
    assert (steps.latency, steps.latency_token, steps.attention, steps.writer_context) == (0, 0, 0, 0)
    assert steps.shared_context is None
    assert steps.prefill == ((8, 0.01), (16, 0.01))


def test_context_in_common_costs_less_where_it_was_measured() -> None:
    own = Writers(count=8, context=8216, seconds=0.0052 + 8 * 8160 * 35e-9)
    common = 0.0052 + 8192 * 35e-9 + 7 * 8192 * 20e-9
    known = calibration(0, 0, 0, own=own, shared=Writers(count=8, context=8192, seconds=common)).steps("test")
    unknown = calibration(0, 0, 0, own=own).steps("test")
    assert known.writer_context == pytest.approx(35e-9)
    assert known.shared_context == pytest.approx(20e-9)
    contexts = [7200, 7200]
    saved = unknown.seconds([], contexts, 7168) - known.seconds([], contexts, 7168)
    assert saved == pytest.approx(7168 * 15e-9)
    assert unknown.seconds([], contexts, 7168) == unknown.seconds([], contexts)
    full = [9000, 9000]
    assert known.seconds([], full, 7168) == unknown.seconds([], full, 7168), "the cache holds no more than was measured"


SECONDS = st.floats(0, 10) | st.sampled_from([0.0, 1e-12, 0.02])


@st.composite
def noisy_calibrations(draw: st.DrawFn) -> Calibration:
    """Any times that a clock may show: shorter for more work, none at all, of writers that cost less together."""

    def curve(points: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
        return tuple((point, draw(SECONDS)) for point in points)

    def writers() -> Writers | None:
        count, context = draw(st.integers(1, 32)), draw(st.integers(1, 9000))
        return draw(st.none() | st.builds(Writers, count=st.just(count), context=st.just(context), seconds=SECONDS))

    warm = draw(st.booleans())
    return Calibration(
        latency=draw(st.none() | SECONDS),
        budget=draw(st.none() | st.just(BUDGET)),
        cold=curve(ROWS),
        warm=curve(ROWS[4:]) if warm else (),
        context=CONTEXT if warm else 0,
        before=curve(draw(st.sampled_from([(), ROWS[:1], ROWS]))),
        behind=curve(draw(st.sampled_from([(), ROWS]))),
        beside=draw(st.sampled_from([(), ((1, -0.01),), ((16, 0.1),), ((1, 0.2), (16, -0.1))])),
        decode=curve(draw(st.sampled_from([(1,), (1, 8), (1, 2, 32)]))),
        decode_context=56,
        own=writers(),
        shared=writers(),
        prompt=draw(SECONDS),
    )


@settings(max_examples=60)
@given(before=noisy_calibrations(), after=noisy_calibrations())
def test_no_measured_time_makes_a_plan_fail(before: Calibration, after: Calibration) -> None:
    for calibrated in (before, after, before.mean(after)):
        steps = calibrated.steps("test")
        for prompts, writers in (([], [9000] * 8), ([(100, 0)], []), ([(2048, 8192), (1, 20_000)], [60, 9000])):
            assert 0 <= steps.seconds(prompts, writers, sum(writers) // 2) < float("inf")
        assert min(steps.way, *steps.front_end(20_000)) >= 0
        assert steps.way + sum(steps.front_end(20_000)) < float("inf")


def test_mean_of_two_calibrations() -> None:
    before, after = calibration(0.004, 1e-6, 1e-9, measured=0.004), calibration(0.006, 1e-6, 1e-9)
    mean = before.mean(after)
    assert mean.latency is None, "only one of them measured it"
    assert mean.steps("test").latency == pytest.approx(0.005, abs=1e-6)
    assert mean.budget == BUDGET
    assert before.mean(before) == before


def test_mean_of_writers_is_of_those_who_were_as_many() -> None:
    """How far they had written when they were timed is not the same each time."""
    early, late = Writers(count=8, context=8216, seconds=0.006), Writers(count=8, context=8226, seconds=0.008)
    mean = calibration(0, 0, 0, own=early).mean(calibration(0, 0, 0, own=late))
    assert mean.own == Writers(count=8, context=8221, seconds=0.007)
    fewer = Writers(count=4, context=8216, seconds=0.006)
    assert calibration(0, 0, 0, own=early).mean(calibration(0, 0, 0, own=fewer)).own is None
