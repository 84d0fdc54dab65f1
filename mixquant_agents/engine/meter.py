"""Client-side timing of one turn: what can be known without looking into the engine.

One clock (``time.monotonic``), one reading per delta; the cost of a token is one append.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from mixquant_agents.records import TurnTimes, percentile

__all__ = ["TurnMeter"]


class TurnMeter:
    """Stopwatch of one turn, started on construction.

    An inter-token latency (ITL) is the time between two deltas divided by the tokens of the later one: a delta of
    several tokens counts once per token in the mean, and once in the percentiles.
    """

    __slots__ = ("_clock", "_first", "_gaps", "_last", "_tokens", "submitted")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None
        self._last = 0.0
        self._tokens = 0
        self._gaps = array("d")
        self.submitted = clock()

    @property
    def tokens(self) -> int:
        """Tokens counted so far."""
        return self._tokens

    def now(self) -> float:
        """The present instant on this meter's clock, in seconds."""
        return self._clock()

    def token(self, count: int = 1) -> None:
        """``count`` tokens have just arrived together; 0 is ignored."""
        if count < 1:
            return
        now = self._clock()
        if self._first is None:
            self._first = now
        else:
            self._gaps.append((now - self._last) / count)
        self._last = now
        self._tokens += count

    def times(self) -> TurnTimes:
        """The times up to now, as a client sees them: ``timing_source="client"``; queue and prefill are unknown."""
        if self._first is None:
            return TurnTimes(total_seconds=self._clock() - self.submitted, timing_source="client")
        decode = self._last - self._first
        return TurnTimes(
            ttft_seconds=self._first - self.submitted,
            decode_seconds=decode,
            itl_mean_seconds=decode / (self._tokens - 1) if self._gaps else None,
            itl_p50_seconds=percentile(self._gaps, 0.5),
            itl_p95_seconds=percentile(self._gaps, 0.95),
            total_seconds=self._clock() - self.submitted,
            timing_source="client",
        )

    def engine_times(self, *, scheduled: float) -> TurnTimes:
        """The times up to now when this process is the engine and began the prompt at ``scheduled`` (the same clock):
        ``timing_source="engine"``; ``delivery_seconds`` is 0 because nothing is handed over."""
        times = self.times().model_dump()
        times["timing_source"] = "engine"
        times["queue_seconds"] = scheduled - self.submitted
        if self._first is not None:
            times["prefill_seconds"] = self._first - scheduled
            times["delivery_seconds"] = 0.0
        return TurnTimes(**times)
