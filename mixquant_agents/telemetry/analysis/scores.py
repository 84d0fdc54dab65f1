"""Scores of threads by the policy that they ran under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mixquant_agents.telemetry.store.models import Series, StoredScore

__all__ = ["PolicyKey", "ScoreRow", "mean", "scores_by_name", "scores_by_policy"]

PolicyKey = tuple[str, bool]
"""``(policy, whether its turns ran an emulation)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """Scores of one name.

    Attributes:
        by_policy: ``(mean, number of threads)``.
    """

    name: str
    by_policy: Mapping[PolicyKey, tuple[float, int]]


def mean(scores: Sequence[StoredScore]) -> float | None:
    """``None`` where there is none."""
    return sum(scored.score for scored in scores) / len(scores) if scores else None


def scores_by_policy(scores: Iterable[StoredScore], series: Iterable[Series]) -> dict[PolicyKey, list[StoredScore]]:
    """The scores of each policy. A thread that ran under several counts for none."""
    known = {entry.id: entry for entry in series}
    grouped: dict[PolicyKey, list[StoredScore]] = {}
    for scored in scores:
        own = [known[number] for number in scored.series if number in known]
        policies = {entry.policy for entry in own}
        if len(policies) == 1:
            key = policies.pop(), any(entry.emulated for entry in own)
            grouped.setdefault(key, []).append(scored)
    return grouped


def scores_by_name(grouped: Mapping[PolicyKey, Sequence[StoredScore]]) -> list[ScoreRow]:
    """A row for each name, so that policies are compared on the same task."""
    names = sorted({scored.name for scores in grouped.values() for scored in scores})
    rows = []
    for name in names:
        by_policy = {}
        for policy, scores in grouped.items():
            own = [scored for scored in scores if scored.name == name]
            value = mean(own)
            if value is not None:
                by_policy[policy] = value, len(own)
        rows.append(ScoreRow(name=name, by_policy=by_policy))
    return rows
