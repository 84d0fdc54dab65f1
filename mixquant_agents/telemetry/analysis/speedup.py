"""Comparing the prefill speed of two sets of turns, between turns of like size only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixquant_agents.telemetry.store.aggregate import Aggregate

__all__ = ["STRATUM_TURNS", "Match", "side_by_side", "speed_up"]

STRATUM_TURNS = 5
"""Fewest turns on each side for a size class to count in a speed-up."""


@dataclass(frozen=True, slots=True)
class Match:
    """Prefill speed of one side over the other's at like sizes, its 95 % interval, and how many turns it rests on."""

    ratio: float
    low: float
    high: float
    base_turns: int
    turns: int
    covered: float


def side_by_side(setups: Sequence[Aggregate]) -> Aggregate:
    """Several models or devices in one aggregate, whose size classes stay apart."""
    whole = Aggregate()
    for number, setup in enumerate(setups):
        whole.strata.update({f"{number}:{name}": values for name, values in setup.strata.items()})
    return whole


def speed_up(base: Aggregate, policy_turns: Aggregate) -> Match | None:
    """Compare within the size classes that both sides fill; ``None`` where there is none."""
    shared = {
        name: (base.strata[name], stratum)
        for name, stratum in policy_turns.strata.items()
        if name in base.strata and min(stratum[0], base.strata[name][0]) >= STRATUM_TURNS
    }
    turns = sum(after[0] for _, after in shared.values())
    if not turns:
        return None
    mean = variance = 0.0
    for before, after in shared.values():
        weight = after[0] / turns
        mean += weight * (before[1] / before[0] - after[1] / after[0])
        variance += weight**2 * (_variance_of_mean(before) + _variance_of_mean(after))
    spread = 1.96 * math.sqrt(variance)
    return Match(
        ratio=math.exp(mean),
        low=math.exp(mean - spread),
        high=math.exp(mean + spread),
        base_turns=int(sum(before[0] for before, _ in shared.values())),
        turns=int(turns),
        covered=turns / sum(stratum[0] for stratum in policy_turns.strata.values()),
    )


def _variance_of_mean(stratum: list[float]) -> float:
    count, total, squares = stratum
    return max(0.0, squares - total * total / count) / (count - 1) / count
