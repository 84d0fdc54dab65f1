"""The figures of the overview and of a comparison, computed from the store alone.

A speed-up is only given where the store holds turns of the policy ``exact`` of the same model, engine and device,
measured, not emulated, and only between turns of like size (see :mod:`~mixquant_agents.telemetry.analysis.speedup`).
Turns that do not say on which device they ran are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mixquant_agents.telemetry.analysis.collect import Collected, collect
from mixquant_agents.telemetry.analysis.figures import Figures, figures_of
from mixquant_agents.telemetry.analysis.policies import PolicyFigures, by_policy
from mixquant_agents.telemetry.analysis.scores import ScoreRow, scores_by_name, scores_by_policy
from mixquant_agents.telemetry.analysis.speedup import (
    BASELINE,
    STRATUM_TURNS,
    comparable,
    setup_of,
    side_by_side,
    speed_up,
)
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED, Aggregate, bin_value
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import Series, TurnStore
from mixquant_agents.telemetry.store.rows import from_microseconds

__all__ = [
    "Comparison",
    "DraftPace",
    "Figures",
    "Overview",
    "Point",
    "PolicyFigures",
    "SpeedUp",
    "compare",
    "distribution",
    "overview",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One interval of the charts. ``at`` is its start, UTC, ISO 8601."""

    at: str
    turns: int
    bad: int
    ttft_p50: float | None
    ttft_p95: float | None
    cache_hit_share: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """Prefill speed against the measured baseline, between turns of like size.

    Attributes:
        prefill: seconds per prefilled token of the baseline over the policy's; above 1 the policy is faster. Ratio of
            geometric means within a size class, averaged (in the logarithm) with the policy's turns as weights.
        low, high: 95 % interval of it.
        turns, baseline_turns: turns in the size classes that count.
        covered: share of the policy's turns in those classes.
    """

    model: str
    engine: str
    device: str
    policy: str
    prefill: float
    low: float
    high: float
    turns: int
    baseline_turns: int
    covered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPace:
    """Seconds per written token of policies that draft and of those that do not, on the same models, engines and
    devices; ``without`` is ``None`` where there is nothing to compare with."""

    drafting: float
    without: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The first page.

    Attributes:
        draft_pace: ``None`` where nothing was drafted.
        interval_seconds: length of a point.
        policies: the same turns by policy.
        scores: of their threads, by name.
        truncated: only the newest turns were read.
    """

    figures: Figures
    draft_pace: DraftPace | None
    turns_per_minute: float | None
    since: str
    until: str
    interval_seconds: int
    points: list[Point]
    policies: list[PolicyFigures]
    scores: list[ScoreRow]
    speed_ups: list[SpeedUp]
    no_speed_up: str | None
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sets of turns side by side. ``prefill_speed_up``: A's seconds per prefilled token over B's at like sizes, and
    its 95 % interval."""

    a: Figures
    b: Figures
    distributions: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    prefill_speed_up: tuple[float, float, float] | None = None
    matched_turns: tuple[int, int] = (0, 0)
    note: str | None = None


def _draft_pace(collected: Collected, series: Sequence[Series], policy: str | None) -> DraftPace | None:
    """Of ``policy`` where one was chosen. Emulations are left out: their times say nothing about speed."""
    measured = [entry for entry in collected.present(series) if not entry.emulated]
    drafting = {entry.id: setup_of(entry) for entry in measured if collected.total([entry.id]).count("draft_cycles")}
    chosen = [entry.id for entry in measured if entry.id in drafting and policy in (None, entry.policy)]
    pace = collected.total(chosen).ratio("decode_rate_seconds", "decode_rate_tokens")
    if pace is None:
        return None
    setups = {drafting[number] for number in chosen}
    plain = [entry.id for entry in measured if entry.id not in drafting and setup_of(entry) in setups]
    return DraftPace(drafting=pace, without=collected.total(plain).ratio("decode_rate_seconds", "decode_rate_tokens"))


def overview(store: TurnStore, turn_filter: TurnFilter | None = None, *, now: float | None = None) -> Overview:
    """Figures, points and speed-ups of the chosen turns.

    Raises:
        StoreError: the store cannot be read.
    """
    turn_filter = turn_filter or TurnFilter()
    collected = collect(store, turn_filter, now=now)
    series = store.series()
    total = collected.total()
    minutes = (collected.until_us - collected.since_us) / 60e6
    # The baseline counts even where the filter chose another policy.
    with_baseline = (
        collected if turn_filter.policy is None else collect(store, replace(turn_filter, policy=None), now=now)
    )
    length, intervals = collected.intervals()
    speed_ups, no_speed_up = _speed_ups(with_baseline, series, turn_filter.policy)
    scores = scores_by_policy(store.scores(turn_filter), series)
    return Overview(
        figures=figures_of(collected, total, series),
        draft_pace=_draft_pace(with_baseline, series, turn_filter.policy),
        turns_per_minute=total.turns / minutes if minutes > 0 and total.turns else None,
        since=from_microseconds(collected.since_us),
        until=from_microseconds(collected.until_us),
        interval_seconds=length,
        points=[_point(start, aggregate) for start, aggregate in intervals],
        policies=by_policy(collected, with_baseline, series, scores),
        scores=scores_by_name(scores),
        speed_ups=speed_ups,
        no_speed_up=no_speed_up,
        truncated=collected.truncated,
    )


def compare(store: TurnStore, a: TurnFilter, b: TurnFilter, *, now: float | None = None) -> Comparison:
    """Two sets of turns side by side, for example two policies or two runs.

    Raises:
        StoreError: the store cannot be read.
    """
    series = store.series()
    sides = [collect(store, turn_filter, now=now) for turn_filter in (a, b)]
    totals = [side.total() for side in sides]
    figures = [figures_of(side, total, series) for side, total in zip(sides, totals, strict=True)]
    by_setup = [_by_setup(side, series) for side in sides]
    shared = sorted(by_setup[0].keys() & by_setup[1].keys())
    measured, note = None, None
    if any(side.emulated for side in figures):
        note = "one side ran an emulation: its times say nothing about speed"
    elif not by_setup[0] and not by_setup[1]:
        note = "these turns do not say on which device they ran: no speed-up is given"
    elif not shared:
        note = "no model ran on the same device on both sides: no speed-up is given"
    elif (measured := speed_up(*(side_by_side([side[setup] for setup in shared]) for side in by_setup))) is None:
        note = f"no size class of prompts holds {STRATUM_TURNS} turns of both sides: no speed-up is given"
    return Comparison(
        a=figures[0],
        b=figures[1],
        distributions={
            time.name: distribution(*(total.bins.get(time.name, {}) for total in totals)) for time in SUMMARIZED
        },
        prefill_speed_up=(measured.ratio, measured.low, measured.high) if measured is not None else None,
        matched_turns=(measured.base_turns, measured.turns) if measured is not None else (0, 0),
        note=note,
    )


def distribution(a: dict[int, int], b: dict[int, int], *, bars: int = 28) -> list[tuple[float, float, float]]:
    """``(seconds, share of A, share of B)`` over common log-spaced bars; empty when both are."""
    numbers = [*a, *b]
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    width = max(1, math.ceil((high - low + 1) / bars))
    count = (high - low) // width + 1
    shares: list[list[float]] = [[0.0] * count, [0.0] * count]
    for side, histogram in zip(shares, (a, b), strict=True):
        total = sum(histogram.values())
        for number, times in histogram.items():
            side[(number - low) // width] += times / total
    middle = (width - 1) // 2
    return [(bin_value(low + n * width + middle), shares[0][n], shares[1][n]) for n in range(count)]


def _point(start: int, aggregate: Aggregate) -> Point:
    return Point(
        at=from_microseconds(start * 1_000_000),
        turns=aggregate.turns,
        bad=aggregate.bad,
        ttft_p50=aggregate.percentile("ttft", 0.5),
        ttft_p95=aggregate.percentile("ttft", 0.95),
        cache_hit_share=aggregate.ratio("cached", "prompt_known"),
        prefill_tokens_per_second=aggregate.ratio("prefill_rate_tokens", "prefill_rate_seconds"),
        decode_tokens_per_second=aggregate.ratio("decode_rate_tokens", "decode_rate_seconds"),
    )


def _speed_ups(collected: Collected, series: Sequence[Series], policy: str | None) -> tuple[list[SpeedUp], str | None]:
    """Speed-ups, or why there is none to show."""
    present_series = collected.present(series)
    candidates = [entry for entry in present_series if entry.policy != BASELINE and policy in (None, entry.policy)]
    if not candidates:
        only_exact = present_series and policy is None
        return [], "all turns ran exact: there is nothing to compare" if only_exact else None
    if all(entry.emulated for entry in candidates):
        return [], "the quantized rows were emulated: their times say nothing about speed"
    if all(entry.device is None for entry in candidates):
        return [], "these turns do not say on which device they ran: there is nothing to compare them with"
    speed_ups = []
    for name, setup in dict.fromkeys((entry.policy, setup_of(entry)) for entry in candidates if not entry.emulated):
        model, engine, device = setup
        if device is None:
            continue
        measured = speed_up(*comparable(collected, present_series, name, setup))
        if measured is not None:
            speed_ups.append(
                SpeedUp(
                    model=model,
                    engine=engine,
                    device=device,
                    policy=name,
                    prefill=measured.ratio,
                    low=measured.low,
                    high=measured.high,
                    turns=measured.turns,
                    baseline_turns=measured.base_turns,
                    covered=measured.covered,
                )
            )
    if speed_ups:
        return speed_ups, None
    return [], "the store holds no exact turns of the same model on the same device and of like size to compare with"


def _by_setup(collected: Collected, series: Sequence[Series]) -> dict[tuple[str, str, str], Aggregate]:
    """Turns by model, engine and device; without those that do not say on which device they ran."""
    ids: dict[tuple[str, str, str], list[int]] = {}
    for entry in collected.present(series):
        if entry.device is not None:
            ids.setdefault((entry.model, entry.engine, entry.device), []).append(entry.id)
    return {setup: collected.total(series_ids) for setup, series_ids in ids.items()}
