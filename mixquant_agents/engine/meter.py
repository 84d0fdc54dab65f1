"""The stopwatch of a turn: the only place where TTFT, inter-token latency and totals are computed.

One clock (``time.monotonic``), one reading per delta; the cost of a token is one append. An engine that stamps its own
instants on the same clock adds them, and the times then tell queue, prefill and delivery apart.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from mixquant_agents.records import TurnTimes, percentile

__all__ = ["EngineStamps", "TurnMeter"]

_SLACK = 1e-6
"""Seconds by which float sums may differ."""


@dataclass(frozen=True, slots=True)
class EngineStamps:
    """Instants of one turn inside its engine, on the meter's clock; ``None`` where the engine did not stamp.

    Attributes:
        scheduled: the prompt was begun.
        first_token, last_token: these tokens were made.
    """

    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


class TurnMeter:
    """Stopwatch of one turn.

    An inter-token latency (ITL) is the time between two deltas, shared among the tokens of the later one: it counts
    once for each of them, in the mean and in the percentiles.

    Args:
        submitted: when the turn was handed over, on ``clock``; by default now.
    """

    __slots__ = ("_clock", "_first", "_gaps", "_last", "_tokens", "submitted")

    def __init__(self, clock: Callable[[], float] = time.monotonic, submitted: float | None = None) -> None:
        self._clock = clock
        self._first: float | None = None
        self._last: float | None = None
        self._tokens = 0
        self._gaps = array("d")
        self.submitted = clock() if submitted is None else submitted

    @property
    def tokens(self) -> int:
        """Tokens counted so far."""
        return self._tokens

    def now(self) -> float:
        """The present instant on this meter's clock, in seconds."""
        return self._clock()

    def token(self, count: int = 1, at: float | None = None) -> None:
        """``count`` tokens have arrived together, just now or ``at`` that instant; 0 is ignored."""
        if count < 1:
            return
        now = self._clock() if at is None else at
        if self._last is None:
            self._first = now
        else:
            gap = (now - self._last) / count
            if count == 1:
                self._gaps.append(gap)
            else:
                self._gaps.extend([gap] * count)
        self._last = now
        self._tokens += count

    def times(self, stamps: EngineStamps | None = None) -> TurnTimes:
        """The times up to now.

        Without stamps they are a client's: ``timing_source="client"``; queue, prefill and delivery are unknown. With
        all of them they are the engine's, and decode runs from its first token to its last.
        """
        total = self._clock() - self.submitted
        stamps = stamps or EngineStamps()
        queue = _gap(self.submitted, stamps.scheduled)
        prefill = _gap(stamps.scheduled, stamps.first_token)
        delivery = _gap(stamps.first_token, self._first)
        ttft = _gap(self.submitted, self._first)
        whole = None
        if queue is not None and prefill is not None and delivery is not None:
            whole = queue + prefill + delivery
        if whole is not None and whole > max(total, ttft or 0.0) + _SLACK:  # stamps of another clock tell nothing
            queue = prefill = delivery = whole = None
        stamped = _gap(stamps.first_token, stamps.last_token) if whole is not None else None
        decode = stamped if stamped is not None else _gap(self._first, self._last)
        spread = self._tokens > 1 and (stamped is not None or len(self._gaps) > 0)
        by_engine = whole is not None or (self._first is None and queue is not None)
        return TurnTimes(
            queue_seconds=queue,
            prefill_seconds=prefill,
            delivery_seconds=delivery,
            ttft_seconds=whole if whole is not None else ttft,
            decode_seconds=decode,
            itl_mean_seconds=decode / (self._tokens - 1) if decode is not None and spread else None,
            itl_p50_seconds=percentile(self._gaps, 0.5),
            itl_p95_seconds=percentile(self._gaps, 0.95),
            total_seconds=max(total, whole or 0.0),
            timing_source="engine" if by_engine else "client",
        )

    def as_engine(self, *, scheduled: float) -> EngineStamps:
        """The stamps where this process is the engine and began the prompt at ``scheduled``: nothing is handed over."""
        return EngineStamps(scheduled, self._first, self._last)


def _gap(start: float | None, end: float | None) -> float | None:
    """Seconds from one instant to a later one; ``None`` where one of them is unknown."""
    return max(0.0, end - start) if start is not None and end is not None else None
