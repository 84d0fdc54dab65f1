"""Comparing the prefill speed of two sets of turns, between turns of like size only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mixquant_agents.telemetry.analysis.collect import Collected
from mixquant_agents.telemetry.store.aggregate import Aggregate, timed_sums
from mixquant_agents.telemetry.store.models import Series

__all__ = [
    "BASELINE",
    "STRATUM_TURNS",
    "Match",
    "Saving",
    "comparable",
    "saving",
    "setup_of",
    "side_by_side",
    "speed_up",
]

BASELINE = "exact"
"""The policy that others are compared with."""

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


@dataclass(frozen=True, slots=True)
class Saving:
    """Prefill seconds that turns of a policy saved.

    Attributes:
        seconds: what the baseline would have taken less what the policy took; below 0 the policy was slower.
        baseline_seconds: what the baseline would have taken for the same turns.
        turns: the policy's turns that this is said of.
    """

    seconds: float
    baseline_seconds: float
    turns: int


def setup_of(entry: Series) -> tuple[str, str, str | None]:
    """Model, engine and device: what must be equal for two speeds to be compared."""
    return entry.model, entry.engine, entry.device


def comparable(
    collected: Collected, series: Sequence[Series], policy: str, setup: tuple[str, str, str | None]
) -> tuple[Aggregate, Aggregate]:
    """The baseline's turns and the policy's, of one setup: what may be compared. Emulations are left out."""
    measured = [entry for entry in series if setup_of(entry) == setup and not entry.emulated]
    base, turns = (
        collected.total([entry.id for entry in measured if entry.policy == name]) for name in (BASELINE, policy)
    )
    return base, turns


def side_by_side(setups: Sequence[Aggregate]) -> Aggregate:
    """Several models or devices in one aggregate, whose size classes stay apart."""
    whole = Aggregate()
    for number, setup in enumerate(setups):
        whole.strata.update({f"{number}:{name}": values for name, values in setup.strata.items()})
    return whole


def speed_up(base: Aggregate, policy_turns: Aggregate) -> Match | None:
    """Compare within the size classes that both sides fill; ``None`` where there is none."""
    shared = _shared(base, policy_turns)
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


def saving(base: Aggregate, policy_turns: Aggregate) -> Saving | None:
    """Prefill seconds saved, by the same size classes as :func:`speed_up`; ``None`` where there is none, or where the
    store does not say how long their turns took (earlier versions did not).

    In a size class the baseline would have taken the policy's seconds times the ratio of the geometric means of the
    seconds per prefilled token.
    """
    turns, took, baseline = 0, 0.0, 0.0
    for name, (before, after) in _shared(base, policy_turns).items():
        timed_turns, timed_seconds = (policy_turns.sums.get(sum_name, 0) for sum_name in timed_sums(name))
        if timed_turns:
            turns += int(timed_turns)
            took += timed_seconds
            baseline += timed_seconds * math.exp(before[1] / before[0] - after[1] / after[0])
    return Saving(baseline - took, baseline, turns) if turns else None


def _shared(base: Aggregate, policy_turns: Aggregate) -> dict[str, tuple[list[float], list[float]]]:
    """``(baseline, policy)`` by size class, of the classes that hold enough turns of both."""
    return {
        name: (base.strata[name], stratum)
        for name, stratum in policy_turns.strata.items()
        if name in base.strata and min(stratum[0], base.strata[name][0]) >= STRATUM_TURNS
    }


def _variance_of_mean(stratum: list[float]) -> float:
    count, total, squares = stratum
    return max(0.0, squares - total * total / count) / (count - 1) / count
