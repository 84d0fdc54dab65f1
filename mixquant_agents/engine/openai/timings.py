"""What a server reports of a turn in its per-request metrics (``vllm serve --enable-per-request-metrics``): its own
times, and the prompt's rows by precision where it runs the plugin.

A server's durations need no common clock: they are laid into the time that this side measured. What does not fit into
it, as from a clock that was set meanwhile, tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["ServerMetrics"]

_SLACK = 1e-3
"""Seconds by which a server's rounded durations may exceed what this side measured."""


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """Seconds and rows of one turn, by its server; ``None`` where it does not say.

    Attributes:
        queue: from the request's arrival in the scheduler until the prompt was begun.
        prefill: from there to the first token.
        decode: from the first token to the last.
        itl: mean time between tokens.
        quantized, exact, recomputed: rows, as the plugin's worker counted them.
    """

    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    itl: float | None = None
    quantized: int | None = None
    exact: int | None = None
    recomputed: int | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, object]) -> ServerMetrics:
        """From the field ``metrics`` of an answer; what is no duration and no count is unknown."""
        return cls(
            queue=_seconds(metrics.get("queue_time_ms")),
            prefill=_seconds(metrics.get("time_to_first_token_ms")),  # vLLM counts it from scheduling
            decode=_seconds(metrics.get("generation_time_ms")),
            itl=_seconds(metrics.get("mean_itl_ms")),
            quantized=_rows(metrics.get("mixquant_quantized_rows")),
            exact=_rows(metrics.get("mixquant_exact_rows")),
            recomputed=_rows(metrics.get("mixquant_recomputed_rows")),
        )

    def times(self, own: TurnTimes) -> TurnTimes:
        """``own`` with the server's phases in it, where they fit."""
        queue, prefill, ttft, total = self.queue, self.prefill, own.ttft_seconds, own.total_seconds
        if queue is None or prefill is None or ttft is None or total is None:
            return own
        if queue + prefill > ttft + _SLACK or (self.decode or 0.0) > total + _SLACK:
            return own
        delivery = max(0.0, ttft - queue - prefill)
        whole = queue + prefill + delivery
        return own.model_copy(
            update={
                "queue_seconds": queue,
                "prefill_seconds": prefill,
                "delivery_seconds": delivery,
                "ttft_seconds": whole,
                "decode_seconds": own.decode_seconds if self.decode is None else self.decode,
                "itl_mean_seconds": own.itl_mean_seconds if self.itl is None else self.itl,
                "total_seconds": max(total, whole),
                "timing_source": "engine",
            }
        )

    def counts(self, own: TurnCounts) -> TurnCounts:
        """``own`` with the rows in it. Rows that contradict the prompt's count are unknown."""
        if self.quantized is None or self.exact is None or own.prompt_tokens is None:
            return own
        rows = self.quantized + self.exact
        if rows > own.prompt_tokens or own.prefill_tokens not in (None, rows):
            return own
        return own.model_copy(
            update={
                "cached_tokens": own.prompt_tokens - rows,
                "prefill_tokens": rows,
                "quantized_tokens": self.quantized,
                "exact_tokens": self.exact,
                "recomputed_rows": self.recomputed,
            }
        )


def _seconds(value: object) -> float | None:
    """Milliseconds as seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return value / 1000


def _rows(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
