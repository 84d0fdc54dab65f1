"""Sums and log-binned histograms of turns, small enough to be kept per minute, hour and day.

A histogram is ``{bin: count}`` with ``bin = floor(log(value) / log(1.04))``: a percentile read from it is at most 2 %
off (half a bin), whatever the distribution. Values are seconds; below a microsecond counts as one microsecond.

Besides the phases a histogram is kept per *stratum* of turns alike in size: seconds of prefill per prefilled token,
by power of two of the prefilled and of the whole prompt. Policies are only compared within a stratum, because which
turns ran under which policy is not random: a policy tried on short prompts must not look fast for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mixquant_agents.records import TurnRecord

__all__ = [
    "DAY",
    "HOUR",
    "LEVELS",
    "MINUTE",
    "TIMES",
    "Aggregate",
    "bin_of",
    "bin_value",
    "histogram_percentile",
    "stratum_of",
]

MINUTE, HOUR, DAY = 60, 3_600, 86_400
LEVELS = (MINUTE, HOUR, DAY)
"""Lengths of a roll-up's interval, seconds."""

TIMES = ("ttft", "queue", "prefill", "decode", "itl_mean", "total")
"""Phases with a histogram; the field of the record is ``<name>_seconds``."""

_LOG = math.log(1.04)
_FLOOR = 1e-6
_log = math.log


def bin_of(seconds: float) -> int:
    """The bin that holds ``seconds``."""
    return math.floor(_log(seconds if seconds > _FLOOR else _FLOOR) / _LOG)


def bin_value(number: int) -> float:
    """The geometric middle of a bin, seconds."""
    return math.exp((number + 0.5) * _LOG)


def histogram_percentile(histogram: Mapping[int, int], share: float) -> float | None:
    """Percentile (``share`` in 0..1) of what was counted; ``None`` of an empty histogram."""
    total = sum(histogram.values())
    if not total:
        return None
    place, seen = share * (total - 1), 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen > place:
            return bin_value(number)
    return None  # pragma: no cover - the counts add up to the total


def stratum_of(prefill_tokens: int, prompt_tokens: int) -> str:
    """Name of the size class: powers of two of prefilled and of all prompt tokens."""
    return f"s{prefill_tokens.bit_length()}.{prompt_tokens.bit_length()}"


@dataclass(slots=True)
class Aggregate:
    """What is known of a set of turns.

    Attributes:
        sums: tokens and seconds by name. A ``…_known`` or ``…_rate_…`` sum counts only turns where both terms are
            known, so that a ratio never mixes turns that say something with turns that do not.
        bins: histograms by phase and by stratum.
    """

    turns: int = 0
    aborted: int = 0
    failed: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    bins: dict[str, dict[int, int]] = field(default_factory=dict)

    def add(self, turn: TurnRecord) -> None:
        """Count one turn."""
        self.turns += 1
        self.aborted += turn.aborted
        self.failed += turn.error is not None
        sums = self.sums
        prompt, cached, prefill, decode = (
            turn.prompt_tokens,
            turn.cached_tokens,
            turn.prefill_tokens,
            turn.decode_tokens,
        )
        if prompt is not None:
            sums["prompt"] = sums.get("prompt", 0) + prompt
            if cached is not None:
                sums["cached"] = sums.get("cached", 0) + cached
                sums["prompt_known"] = sums.get("prompt_known", 0) + prompt
        if prefill is not None:
            sums["prefill"] = sums.get("prefill", 0) + prefill
            if turn.prefill_seconds and prefill:
                sums["prefill_rate_tokens"] = sums.get("prefill_rate_tokens", 0) + prefill
                sums["prefill_rate_seconds"] = sums.get("prefill_rate_seconds", 0) + turn.prefill_seconds
                if prompt is not None and turn.error is None and not turn.aborted:
                    self._count(stratum_of(prefill, prompt), turn.prefill_seconds / prefill)
        if turn.quantized_tokens is not None and turn.exact_tokens is not None:
            sums["quantized"] = sums.get("quantized", 0) + turn.quantized_tokens
            sums["rows_known"] = sums.get("rows_known", 0) + turn.quantized_tokens + turn.exact_tokens
        if decode is not None:
            sums["decode"] = sums.get("decode", 0) + decode
            if turn.decode_seconds and decode > 1:  # the first token is prefill's; decode_seconds cover the others
                sums["decode_rate_tokens"] = sums.get("decode_rate_tokens", 0) + decode - 1
                sums["decode_rate_seconds"] = sums.get("decode_rate_seconds", 0) + turn.decode_seconds
        for name, value in (
            ("ttft", turn.ttft_seconds),
            ("queue", turn.queue_seconds),
            ("prefill", turn.prefill_seconds),
            ("decode", turn.decode_seconds),
            ("itl_mean", turn.itl_mean_seconds),
            ("total", turn.total_seconds),
        ):
            if value is not None:
                self._count(name, value)

    def _count(self, name: str, seconds: float) -> None:
        histogram = self.bins.get(name)
        if histogram is None:
            histogram = self.bins[name] = {}
        number = bin_of(seconds)
        histogram[number] = histogram.get(number, 0) + 1

    def merge(self, other: Aggregate) -> None:
        """Add what ``other`` counted."""
        self.turns += other.turns
        self.aborted += other.aborted
        self.failed += other.failed
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0) + value
        for name, counts in other.bins.items():
            histogram = self.bins.setdefault(name, {})
            for number, count in counts.items():
                histogram[number] = histogram.get(number, 0) + count

    @classmethod
    def of(cls, turns: Iterable[TurnRecord]) -> Aggregate:
        """The aggregate of some turns."""
        aggregate = cls()
        for turn in turns:
            aggregate.add(turn)
        return aggregate

    @classmethod
    def load(cls, turns: int, aborted: int, failed: int, sums: str, bins: str) -> Aggregate:
        """From a row of ``rollups``."""
        histograms = {
            name: {int(number): count for number, count in counts.items()} for name, counts in json.loads(bins).items()
        }
        return cls(turns, aborted, failed, json.loads(sums), histograms)

    def dump(self) -> tuple[int, int, int, str, str]:
        """As a row of ``rollups``."""
        return self.turns, self.aborted, self.failed, json.dumps(self.sums), json.dumps(self.bins)

    def percentile(self, name: str, share: float) -> float | None:
        """Percentile of a phase, seconds, at most 2 % off."""
        return histogram_percentile(self.bins.get(name, {}), share)

    def ratio(self, above: str, below: str) -> float | None:
        """Quotient of two sums; ``None`` where nothing is known."""
        bottom = self.sums.get(below, 0)
        return self.sums.get(above, 0) / bottom if bottom else None
