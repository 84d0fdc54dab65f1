"""Intervals and percentiles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixquant_workflows.runner.stats import bootstrap, percentile


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean(values: list[float]) -> None:
    low, high = bootstrap(values, resamples=200) or (1.0, 0.0)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap(values, resamples=200) == (low, high)


def test_small_statistics() -> None:
    assert bootstrap([]) is None
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    low, high = bootstrap([0.0] * 50 + [1.0] * 50) or (0, 0)
    assert 0.35 < low < 0.45
    assert 0.55 < high < 0.65
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([], 0.5) is None
    assert percentile(range(1, 21), 0.95) == 19


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 1.0]))
def test_percentiles_are_numpys(values: list[int], share: float) -> None:
    assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")
