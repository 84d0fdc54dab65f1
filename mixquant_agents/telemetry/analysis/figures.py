"""What is said of a set of turns, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixquant_agents.records import COUNTS
from mixquant_agents.telemetry.analysis.collect import Collected
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED, Aggregate
from mixquant_agents.telemetry.store.models import Series

__all__ = ["Figures", "figures_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is said of a set of turns; ``None`` where nothing is known.

    Attributes:
        bad: turns that failed or were aborted; a turn that ran out of time is both.
        percentiles: ``{phase: (p50, p95)}``, seconds.
        exact: percentiles are exact; else read from histograms, at most 2 % off.
        prefill_tokens_per_second: prefilled tokens over prefill time, of the turns that know both.
        decode_tokens_per_second: answer tokens after the first over decode time: the pace of one turn.
        cache_hit_share: cached over prompt tokens.
        quantized_share: quantized over all prefilled rows.
        tokens: sums by the name of the count (``cached``, ``quantized``, ``decode`` …).
        emulated: some of these turns ran an emulation: their times say nothing about speed.
    """

    turns: int
    aborted: int
    failed: int
    bad: int
    percentiles: dict[str, tuple[float | None, float | None]]
    exact: bool
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    cache_hit_share: float | None
    quantized_share: float | None
    tokens: dict[str, int | None]
    emulated: bool


def figures_of(
    collected: Collected, total: Aggregate, series: Sequence[Series], ids: Sequence[int] | None = None
) -> Figures:
    """Figures of ``total``, the aggregate of all series of ``collected``, or of those with these ``ids``."""
    return Figures(
        turns=total.turns,
        aborted=total.aborted,
        failed=total.failed,
        bad=total.bad,
        percentiles={
            time.name: (
                collected.percentile(time.name, 0.5, total, ids),
                collected.percentile(time.name, 0.95, total, ids),
            )
            for time in SUMMARIZED
        },
        exact=collected.values is not None,
        prefill_tokens_per_second=total.ratio("prefill_rate_tokens", "prefill_rate_seconds"),
        decode_tokens_per_second=total.ratio("decode_rate_tokens", "decode_rate_seconds"),
        cache_hit_share=total.ratio("cached", "prompt_known"),
        quantized_share=total.ratio("quantized", "rows_known"),
        tokens={count.name: total.count(count.name) for count in COUNTS},
        emulated=any(entry.emulated for entry in collected.present(series) if ids is None or entry.id in ids),
    )
