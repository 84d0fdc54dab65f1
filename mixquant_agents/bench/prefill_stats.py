"""Medians and speed-ups with their lower bounds, from rounds in which every engine ran every case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["per_round", "ratio_interval", "speedup", "spread"]

_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
"""97.5 % points of Student's t by degrees of freedom: ends of the two-sided 95 % interval."""


def ratio_interval(ratios: Sequence[float]) -> dict[str, float]:
    """``{"median", "low95", "high95"}`` of ratios, one per round; the interval is Student's on their logarithms.

    Raises:
        ValueError: fewer than two rounds.
    """
    if len(ratios) < 2:
        raise ValueError(f"an interval needs at least two rounds, not {len(ratios)}")
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    factor = _T_975.get(len(logs) - 1, 2.228)
    return {
        "median": statistics.median(ratios),
        "low95": math.exp(mean - factor * error),
        "high95": math.exp(mean + factor * error),
    }


def speedup(baseline: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times faster ``ours`` is; each is one median per round, in the same order of rounds."""
    return ratio_interval([b / o for b, o in zip(baseline, ours, strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """``{"median", "min", "max", "n"}``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": float(len(values))}


def per_round(rounds: Sequence[Mapping[str, Mapping[str, Sequence[float]]]], case: str, engine: str) -> list[float]:
    """The median of each round in which ``engine`` ran ``case``."""
    return [statistics.median(r[case][engine]) for r in rounds if r.get(case, {}).get(engine)]
