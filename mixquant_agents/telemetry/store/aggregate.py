"""Sums and log-binned histograms of turns, small enough to be kept per minute, hour, six hours and day.

A histogram is ``{bin: count}`` with ``bin = floor(log(value) / log(1.04))``: a percentile read from it is at most 2 %
off (half a bin), whatever the distribution. Values are seconds; below a microsecond counts as one microsecond.

Besides the phases a *stratum* is kept of turns alike in size: number, sum and sum of squares of the logarithm of the
seconds of prefill per prefilled token, by power of two of the prefilled and of the whole prompt. Policies are only
compared within a stratum, because which turns ran under which policy is not random: a policy tried on short prompts
must not look fast for it. How long the prefill of a stratum's turns took lies among the sums, because a store of an
earlier version has strata without it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

from mixquant_agents.records import COUNTS, TIMES

__all__ = [
    "DAY",
    "HOUR",
    "LEVELS",
    "MINUTE",
    "QUARTER",
    "SUMMARIZED",
    "Aggregate",
    "Counted",
    "bin_of",
    "bin_value",
    "histogram_percentile",
    "stratum_of",
    "timed_sums",
]

MINUTE, HOUR, QUARTER, DAY = 60, 3_600, 21_600, 86_400
LEVELS = (MINUTE, HOUR, QUARTER, DAY)
"""Lengths of a roll-up's interval, seconds."""

SUMMARIZED = tuple(time for time in TIMES if time.summarized)
"""Durations with a histogram."""
_SUMMARIZED_NAMES = tuple(time.name for time in SUMMARIZED)
_summarized_values = attrgetter(*(time.field for time in SUMMARIZED))

_terms = attrgetter(
    "prompt_tokens",
    "cached_tokens",
    "prefill_tokens",
    "quantized_tokens",
    "exact_tokens",
    "decode_tokens",
    "prefill_seconds",
    "decode_seconds",
    "aborted",
    "error",
)
"""What enters a sum of its own (see :class:`Counted`)."""
_RELATED = {"cached_tokens", "quantized_tokens", "exact_tokens"}
"""Counts that are only summed where the count that they are a share of is known too."""
_SUMMED = tuple(count for count in COUNTS if count.field not in _RELATED)
_SUMMED_NAMES = tuple(count.name for count in _SUMMED)
_summed_values = attrgetter(*(count.field for count in _SUMMED))

MOST_TURNS = 10**12
"""More turns than any interval holds: a larger count in a store is no count."""

_LOG = math.log(1.04)
_FLOOR = 1e-6
_log, _floor = math.log, math.floor


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
    rank, seen = share * (total - 1), 0
    for number in sorted(histogram):
        seen += histogram[number]
        if seen > rank:
            return bin_value(number)
    return None  # pragma: no cover - the counts add up to the total


def stratum_of(prefill_tokens: int, prompt_tokens: int) -> str:
    """Name of the size class: powers of two of prefilled and of all prompt tokens."""
    return f"{prefill_tokens.bit_length()}.{prompt_tokens.bit_length()}"


def timed_sums(stratum: str) -> tuple[str, str]:
    """Names of two sums of a size class: turns whose prefill seconds are summed, and those seconds."""
    return f"timed_turns:{stratum}", f"timed_seconds:{stratum}"


class Counted(Protocol):
    """What of a turn enters a sum of its own: a :class:`~mixquant_agents.records.TurnRecord`, or a row of the store.
    Besides these, every count and every summarized duration is read."""

    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int | None: ...
    @property
    def prefill_tokens(self) -> int | None: ...
    @property
    def quantized_tokens(self) -> int | None: ...
    @property
    def exact_tokens(self) -> int | None: ...
    @property
    def decode_tokens(self) -> int | None: ...
    @property
    def prefill_seconds(self) -> float | None: ...
    @property
    def decode_seconds(self) -> float | None: ...
    @property
    def aborted(self) -> bool: ...
    @property
    def error(self) -> str | None: ...


def _object(text: object) -> dict[str, Any]:
    """The JSON object in ``text``; an empty one where there is none."""
    try:
        value = json.loads(text)  # type: ignore[arg-type] # what is no text is refused below
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MOST_TURNS


def _is_bin(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii() and len(name) < 6


def _zeros() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass(slots=True)
class Aggregate:
    """What is known of a set of turns.

    Attributes:
        sums: tokens and seconds by name. A ``…_known`` or ``…_rate_…`` sum counts only turns where both terms are
            known, so that a ratio never mixes turns that say something with turns that do not.
        bins: histograms by phase.
        strata: ``[turns, sum of logs, sum of squared logs]`` by stratum.
    """

    turns: int = 0
    aborted: int = 0
    failed: int = 0
    sums: defaultdict[str, float] = field(default_factory=_zeros)
    bins: dict[str, dict[int, int]] = field(default_factory=dict)
    strata: dict[str, list[float]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Turns that failed or were aborted; a turn that ran out of time is both, and counts once."""
        return self.aborted + self.failed - int(self.sums.get("both", 0))

    def add(self, turn: Counted) -> None:
        """Count one turn."""
        prompt, cached, prefill, quantized, exact, decode, prefill_seconds, decode_seconds, aborted, error = _terms(
            turn
        )
        failed = error is not None
        self.turns += 1
        self.aborted += aborted
        self.failed += failed
        sums = self.sums
        sums["both"] += aborted and failed
        for name, count in zip(_SUMMED_NAMES, _summed_values(turn), strict=True):
            if count is not None:
                sums[name] += count
        if prompt is not None and cached is not None:
            sums["cached"] += cached
            sums["prompt_known"] += prompt
        if prefill and prefill_seconds:
            sums["prefill_rate_tokens"] += prefill
            sums["prefill_rate_seconds"] += prefill_seconds
            if prompt is not None and not failed and not aborted:
                stratum = stratum_of(prefill, prompt)
                self._stratum(stratum, _log(prefill_seconds / prefill))
                timed_turns, timed_seconds = timed_sums(stratum)
                sums[timed_turns] += 1
                sums[timed_seconds] += prefill_seconds
        if quantized is not None and exact is not None:
            sums["quantized"] += quantized
            sums["rows_known"] += quantized + exact
        if decode is not None and decode > 1 and decode_seconds:
            # The first token is prefill's; decode_seconds cover the others.
            sums["decode_rate_tokens"] += decode - 1
            sums["decode_rate_seconds"] += decode_seconds
        bins = self.bins
        for name, seconds in zip(_SUMMARIZED_NAMES, _summarized_values(turn), strict=True):
            if seconds is not None:
                histogram = bins.get(name)
                if histogram is None:
                    histogram = bins[name] = {}
                number = _floor(_log(seconds if seconds > _FLOOR else _FLOOR) / _LOG)  # bin_of, without a call
                histogram[number] = histogram.get(number, 0) + 1

    def _stratum(self, name: str, logarithm: float) -> None:
        stratum = self.strata.get(name)
        if stratum is None:
            stratum = self.strata[name] = [0, 0.0, 0.0]
        stratum[0] += 1
        stratum[1] += logarithm
        stratum[2] += logarithm * logarithm

    def merge(self, other: Aggregate) -> None:
        """Add what ``other`` counted."""
        self.turns += other.turns
        self.aborted += other.aborted
        self.failed += other.failed
        for name, value in other.sums.items():
            self.sums[name] += value
        for name, counts in other.bins.items():
            histogram = self.bins.setdefault(name, {})
            for number, count in counts.items():
                histogram[number] = histogram.get(number, 0) + count

        for name, more in other.strata.items():
            self.strata[name] = [
                own + added for own, added in zip(self.strata.get(name, (0, 0.0, 0.0)), more, strict=True)
            ]

    def without(self, part: Aggregate) -> Aggregate:
        """What remains when ``part``, which was counted here too, is taken away."""
        rest = Aggregate(self.turns - part.turns, self.aborted - part.aborted, self.failed - part.failed)
        rest.sums.update({name: max(0.0, value - part.sums.get(name, 0)) for name, value in self.sums.items()})
        for name, counts in self.bins.items():
            removed = part.bins.get(name, {})
            remaining = {number: count - removed.get(number, 0) for number, count in counts.items()}
            rest.bins[name] = {number: count for number, count in remaining.items() if count > 0}
        # Only turns that ended well are in strata: the part has none.
        rest.strata = {name: list(values) for name, values in self.strata.items()}
        return rest

    @classmethod
    def of(cls, turns: Iterable[Counted]) -> Aggregate:
        """The aggregate of some turns."""
        aggregate = cls()
        for turn in turns:
            aggregate.add(turn)
        return aggregate

    @classmethod
    def load(cls, turns: int, aborted: int, failed: int, sums: str, bins: str, strata: str) -> Aggregate:
        """From a row of ``rollups``. What cannot be read of it is left out, so that one odd row fails neither a page
        nor the recording of the turns beside it."""
        loaded = cls()
        loaded.turns, loaded.aborted, loaded.failed = (
            count if _is_count(count) else 0 for count in (turns, aborted, failed)
        )
        loaded.sums.update({name: value for name, value in _object(sums).items() if _is_number(value)})
        for name, counts in _object(bins).items():
            if isinstance(counts, dict) and all(map(_is_count, counts.values())) and all(map(_is_bin, counts)):
                loaded.bins[name] = {int(number): count for number, count in counts.items()}
        for name, values in _object(strata).items():
            if isinstance(values, list) and len(values) == 3 and all(map(_is_number, values)) and values[0] >= 0:
                loaded.strata[name] = values
        return loaded

    def dump(self) -> tuple[int, int, int, str, str, str]:
        """As a row of ``rollups``."""
        sums, bins, strata = (json.dumps(part, separators=(",", ":")) for part in (self.sums, self.bins, self.strata))
        return self.turns, self.aborted, self.failed, sums, bins, strata

    def percentile(self, name: str, share: float) -> float | None:
        """Percentile of a phase, seconds, at most 2 % off."""
        return histogram_percentile(self.bins.get(name, {}), share)

    def count(self, name: str) -> int | None:
        """Sum of a count; ``None`` where no turn said it."""
        if name == "exact":
            known = self.sums.get("rows_known")
            return None if known is None else int(known - self.sums.get("quantized", 0))
        value = self.sums.get(name)
        return None if value is None else int(value)

    def ratio(self, above: str, below: str) -> float | None:
        """Quotient of two sums; ``None`` where nothing is known."""
        bottom = self.sums.get(below, 0)
        return self.sums.get(above, 0) / bottom if bottom else None
