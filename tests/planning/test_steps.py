"""Step times out of curves."""

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.steps import MeasuredSteps, interpolated, rising

CURVE = ((10, 1.0), (20, 2.0), (40, 3.0))


@pytest.mark.parametrize(("at", "seconds"), [(1, 1.0), (10, 1.0), (15, 1.5), (30, 2.5), (40, 3.0), (60, 4.0)])
def test_curve_is_linear_between_its_points_and_beyond_the_last(at: float, seconds: float) -> None:
    assert interpolated(CURVE, at) == pytest.approx(seconds)


def test_dips_of_a_measured_curve_are_noise() -> None:
    assert rising([(40, 2.5), (10, 1.0), (20, 3.0)]) == ((10, 1.0), (20, 3.0), (40, 3.0))


STEPS = MeasuredSteps(
    source="test", prefill=((10, 0.1), (110, 1.1)), decode=((1, 0.5), (11, 0.6)), decode_context=100, attention=1e-4,
    writer_context=1e-3, prompt=0.05,
)  # fmt: skip


def test_step_without_prompts_costs_its_writers() -> None:
    assert STEPS.seconds([], [100]) == pytest.approx(0.5)
    assert STEPS.seconds([], [100] * 11) == pytest.approx(0.6)
    assert STEPS.seconds([], [300]) == pytest.approx(0.7)
    assert STEPS.seconds([], []) == 0


def test_step_with_prompts_costs_its_rows_and_what_they_look_at() -> None:
    assert STEPS.seconds([(50, 0)], []) == pytest.approx(0.5)
    assert STEPS.seconds([(50, 1000)], []) == pytest.approx(0.5 + 1e-4 * 50_000)
    one, two = STEPS.seconds([(100, 0)], []), STEPS.seconds([(50, 0), (50, 0)], [])
    assert two == pytest.approx(one + 0.05 - 1e-4 * 2500), "a prompt more, and half of the pairs"
    assert STEPS.seconds([(1, 0)], [100] * 11) >= STEPS.seconds([], [100] * 11)


@pytest.mark.parametrize("curve", [((1, 0.1),), ((2, 0.1), (1, 0.2)), ((1, 0.1), (1, 0.2))])
def test_curve_without_an_order_is_refused(curve: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ConfigError, match="two points at least"):
        MeasuredSteps(source="test", prefill=curve, decode=CURVE)


def test_latency_is_taken_out_of_the_steps() -> None:
    split = STEPS.with_latency(0.0005)
    assert split.latency == 0.0005
    assert [seconds for _, seconds in split.prefill] == pytest.approx([0.0995, 1.0995])
    assert [seconds for _, seconds in split.with_latency(0.0).prefill] == pytest.approx([0.1, 1.1])
