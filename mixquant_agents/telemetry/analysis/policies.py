"""The chosen turns by policy: figures, their course over time, and the prefill seconds that a policy saved."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixquant_agents.telemetry.analysis.collect import Collected
from mixquant_agents.telemetry.analysis.figures import Figures, figures_of
from mixquant_agents.telemetry.analysis.scores import PolicyKey, mean
from mixquant_agents.telemetry.analysis.speedup import BASELINE, STRATUM_TURNS, Saving, comparable, saving, setup_of
from mixquant_agents.telemetry.store.models import Series, StoredScore

__all__ = ["PolicyFigures", "by_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """Turns of one policy. Turns that ran an emulation are kept apart from measured turns of the same policy.

    Attributes:
        policy: its name.
        emulated: these turns ran an emulation: their times say nothing about speed.
        figures: what is said of these turns.
        ttft_p50: seconds, by interval of the overview; ``None`` where nothing is known.
        prefill_tokens_per_second: by interval of the overview; ``None`` where nothing is known.
        saved: prefill seconds saved against the baseline at like sizes; ``None`` where that cannot be said.
        no_saving: why it cannot be said; ``None`` where it is, and for the baseline.
        score: mean score of its threads; ``None`` where none was scored.
        scored: how many scores that is the mean of.
        score_means: the same by interval of the overview, in which the threads' last turns began.
    """

    policy: str
    emulated: bool
    figures: Figures
    ttft_p50: list[float | None]
    prefill_tokens_per_second: list[float | None]
    saved: Saving | None
    no_saving: str | None
    score: float | None
    scored: int
    score_means: list[float | None]


def by_policy(
    collected: Collected,
    with_baseline: Collected,
    series: Sequence[Series],
    scores: Mapping[PolicyKey, Sequence[StoredScore]],
) -> list[PolicyFigures]:
    """The turns of ``collected`` by policy: the baseline first, then by name.

    Args:
        collected: the turns to show.
        with_baseline: the same turns and those of the baseline, where a filter left it out.
        series: all series of the store.
        scores: of the threads whose turns these are, by policy.
    """
    ids: dict[tuple[str, bool], list[int]] = {}
    for entry in collected.present(series):
        ids.setdefault((entry.policy, bool(entry.emulated)), []).append(entry.id)
    rows = []
    for policy, emulated in sorted(ids, key=lambda key: (key[0] != BASELINE, key)):
        own = ids[policy, emulated]
        length, intervals = collected.intervals(own)
        scored = scores.get((policy, emulated), [])
        saved, no_saving = _saved([entry for entry in series if entry.id in own], with_baseline, series)
        rows.append(
            PolicyFigures(
                policy=policy,
                emulated=emulated,
                figures=figures_of(collected, collected.total(own), series, own),
                ttft_p50=[aggregate.percentile("ttft", 0.5) for _, aggregate in intervals],
                prefill_tokens_per_second=[
                    aggregate.ratio("prefill_rate_tokens", "prefill_rate_seconds") for _, aggregate in intervals
                ],
                saved=saved,
                no_saving=no_saving,
                score=mean(scored),
                scored=len(scored),
                score_means=_score_means(scored, [start for start, _ in intervals], length),
            )
        )
    return rows


def _score_means(scores: Sequence[StoredScore], starts: Sequence[int], length: int) -> list[float | None]:
    """The mean score of each interval of ``length`` seconds that begins at one of ``starts``, which ascend."""
    by_interval: list[list[StoredScore]] = [[] for _ in starts]
    for score in scores:
        second = score.at_us // 1_000_000
        index = bisect_right(starts, second) - 1
        if index >= 0 and second < starts[index] + length:
            by_interval[index].append(score)
    return [mean(own) for own in by_interval]


def _saved(
    own: Sequence[Series], with_baseline: Collected, series: Sequence[Series]
) -> tuple[Saving | None, str | None]:
    """What the turns of some series of one policy saved, or why that cannot be said."""
    if own[0].policy == BASELINE:
        return None, None
    if own[0].emulated:
        return None, "emulated: these times say nothing about speed"
    setups = dict.fromkeys(setup for entry in own if (setup := setup_of(entry))[2] is not None)
    if not setups:
        return None, "these turns do not say on which device they ran"
    parts = [saving(*comparable(with_baseline, series, own[0].policy, setup)) for setup in setups]
    savings = [part for part in parts if part is not None]
    if not savings:
        reason = f"no size class holds {STRATUM_TURNS} of these turns and {STRATUM_TURNS} exact ones of the same model"
        return None, f"{reason}, engine and device"
    return (
        Saving(
            seconds=sum(part.seconds for part in savings),
            baseline_seconds=sum(part.baseline_seconds for part in savings),
            turns=sum(part.turns for part in savings),
        ),
        None,
    )
