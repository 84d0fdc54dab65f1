"""Medians, speed-ups and their intervals."""

from __future__ import annotations

import pytest

from mixquant_agents.bench.prefill.stats import median_interval, pooled_ratio, ratio_interval, speedup


def test_interval_of_equal_rounds_is_a_point() -> None:
    found = speedup([3.0, 6.0, 9.0], [2.0, 4.0, 6.0])
    assert found["median"] == pytest.approx(1.5)
    assert found["low95"] == pytest.approx(1.5)


def test_interval_widens_with_noise() -> None:
    quiet, loud = ratio_interval([1.49, 1.5, 1.51]), ratio_interval([1.2, 1.5, 1.8])
    assert loud["low95"] < quiet["low95"] < 1.5 < quiet["high95"] < loud["high95"]
    with pytest.raises(ValueError, match="two rounds"):
        ratio_interval([1.5])


def test_median_interval_ignores_a_wild_pair() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (1.0, 6.0)  # 2 in 64 lie outside
    assert median_interval([float(n) for n in range(1, 31)]) == (10.0, 21.0)  # the textbook's ranks for 30
    with pytest.raises(ValueError, match="at least six"):
        median_interval([1.0] * 5)
    quiet = [1.1, 1.11, 1.12, 1.1, 1.13, 1.12, 1.11, 1.1, 1.12, 1.11]
    wild = ratio_interval([*quiet[:-1], 0.3])
    assert wild["low95"] < 0.8
    assert wild["median_low95"] == ratio_interval(quiet)["median_low95"] == 1.1


def test_pooled_ratio_draws_whole_pairs() -> None:
    calm, busy = ([1.0] * 50, [0.5] * 50), ([100.0] * 50, [80.0] * 50)
    found = pooled_ratio([calm, busy] * 8)
    assert found["ratio"] == pytest.approx(0.8)  # the busy half holds the p95 of both
    assert found["low95"] == pytest.approx(0.8)
    assert pooled_ratio([calm, busy] * 8, quantile=0.4)["ratio"] == pytest.approx(0.5)
    waits = [10.0 + 0.1 * turn for turn in range(60)]
    noisy = [(waits, [wait * factor for wait in waits]) for factor in (0.7, 0.72, 0.75, 0.77, 0.8, 0.82)]
    few, many = pooled_ratio(noisy), pooled_ratio(noisy * 4)
    assert few["low95"] < many["low95"] < many["ratio"] < many["high95"] < few["high95"]
    with pytest.raises(ValueError, match="two pairs, not 1"):
        pooled_ratio([calm, ([], [])])
