"""Intervals by the bootstrap (Efron 1979, percentile method), seeded, so that the same results give the same
interval."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean

__all__ = ["bootstrap", "paired_ratio", "percentile"]


def bootstrap(values: Sequence[float], *, resamples: int = 2_000, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean of ``values``; for a paired difference give the differences. ``None`` without
    values."""
    if not values:
        return None
    draw = random.Random(seed)  # noqa: S311 - statistics, not secrets
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def paired_ratio(
    above: Sequence[float],
    below: Sequence[float],
    statistic: Callable[[Sequence[float]], float],
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """``statistic`` of ``above`` over that of ``below``, and its 95 % interval; pairs are drawn together."""
    draw = random.Random(seed)  # noqa: S311 - statistics, not secrets
    pairs = list(zip(above, below, strict=True))
    ratios = []
    for _ in range(resamples):
        first, second = zip(*draw.choices(pairs, k=len(pairs)), strict=True)
        ratios.append(statistic(first) / statistic(second))
    ratios.sort()
    return statistic(above) / statistic(below), (ratios[int(0.025 * resamples)], ratios[int(0.975 * resamples) - 1])


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile (``share`` in 0..1): the smallest of ``values`` that at least this share of them does
    not exceed, numpy's ``"inverted_cdf"``; ``None`` without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
