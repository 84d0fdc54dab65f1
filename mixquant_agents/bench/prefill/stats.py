"""Medians and speed-ups with their lower bounds, from rounds in which every engine ran every case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["median_interval", "per_round", "per_turn", "pooled_ratio", "ratio_interval", "speedup", "spread"]

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
          2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
"""97.5 % points of Student's t, from one degree of freedom on: ends of the two-sided 95 % interval."""


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median that assumes nothing about how the values scatter: two of the ordered values.

    Raises:
        ValueError: fewer than six, of which not even the extremes make 95 %.
    """
    n, ordered = len(values), sorted(values)
    if n < 6:
        raise ValueError(f"an interval of the median needs at least six values, not {n}")
    below, outside = 0.0, 0  # chance that at most so many values lie on one side of the median
    while below + math.comb(n, outside) / 2**n <= 0.025:
        below += math.comb(n, outside) / 2**n
        outside += 1
    return ordered[outside - 1], ordered[n - outside]


def ratio_interval(ratios: Sequence[float]) -> dict[str, float]:
    """``{"median", "low95", "high95"}`` of ratios, one per pair; the interval is Student's on their logarithms.

    From six pairs on also ``"median_low95"`` and ``"median_high95"``: a stall of the host makes single pairs wild,
    which widens Student's interval and hardly moves this one.

    Raises:
        ValueError: fewer than two pairs.
    """
    if len(ratios) < 2:
        raise ValueError(f"an interval needs at least two rounds, not {len(ratios)}")
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    factor = _T_975[min(len(logs) - 1, len(_T_975)) - 1]
    interval = {
        "median": statistics.median(ratios),
        "low95": math.exp(mean - factor * error),
        "high95": math.exp(mean + factor * error),
    }
    if len(ratios) >= 6:
        interval["median_low95"], interval["median_high95"] = median_interval(ratios)
    return interval


def pooled_ratio(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], quantile: float = 0.95) -> dict[str, float]:
    """``{"ratio", "low95", "high95"}`` of a quantile over all pairs together, the second of each over the first.

    Values of one run depend on one another, so whole pairs are drawn anew, 1000 times, both runs of a pair together;
    the interval is Student's, with the logarithms' standard deviation over those draws and one degree of freedom less
    than there are pairs. (The plain interval of such draws is too narrow for few pairs.)

    Raises:
        ValueError: fewer than two pairs with values on both sides.
    """
    whole_pairs = [pair for pair in pairs if len(pair[0]) and len(pair[1])]
    n = len(whole_pairs)
    if n < 2:
        raise ValueError(f"an interval needs at least two pairs, not {n}")
    sides = []
    for side in (0, 1):
        values = np.concatenate([np.asarray(pair[side], dtype=float) for pair in whole_pairs])
        owners = np.repeat(np.arange(n), [len(pair[side]) for pair in whole_pairs])
        order = np.argsort(values)
        sides.append((values[order], owners[order]))

    def ratio(counts: npt.NDArray[Any]) -> float:
        first, second = (_weighted_quantile(values, counts[owners], quantile) for values, owners in sides)
        return math.log(second / first)

    whole = ratio(np.ones(n))
    draws = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=1000)
    error = float(np.std([ratio(counts) for counts in draws])) * math.sqrt(n / (n - 1))
    reach = _T_975[min(n - 1, len(_T_975)) - 1] * error
    return {"ratio": math.exp(whole), "low95": math.exp(whole - reach), "high95": math.exp(whole + reach)}


def _weighted_quantile(ordered: npt.NDArray[Any], weights: npt.NDArray[Any], quantile: float) -> float:
    total = np.cumsum(weights)
    return float(ordered[np.searchsorted(total, quantile * total[-1])])


def speedup(baseline: Sequence[float], candidate: Sequence[float]) -> dict[str, float]:
    """How many times faster ``candidate`` is; each is one median per round, in the same order of rounds."""
    return ratio_interval([b / o for b, o in zip(baseline, candidate, strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """``{"median", "min", "max", "n"}``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": float(len(values))}


def per_turn(
    rounds: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], case: str, engine: str, turns: int
) -> list[float]:
    """The median of each turn: a round in which engines went back and forth ``turns`` times counts so many times."""
    medians = []
    for values in (r[case][engine] for r in rounds if r.get(case, {}).get(engine)):
        each = len(values) // turns
        medians += [statistics.median(values[at : at + each]) for at in range(0, each * turns, each)]
    return medians


def per_round(rounds: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], case: str, engine: str) -> list[float]:
    """The median of each round in which ``engine`` ran ``case``."""
    return [statistics.median(r[case][engine]) for r in rounds if r.get(case, {}).get(engine)]
