"""The record of one turn: one model call inside an agent's loop, counted and timed by phase.

Durations are seconds from one monotonic clock, instants are UTC in ISO 8601. What is not known is ``None``, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixquant_agents.validation import FrozenModel

__all__ = ["RECORD_VERSION", "EngineName", "TurnCounts", "TurnRecord", "TurnTimes", "percentile", "utc_now"]

RECORD_VERSION = 1

EngineName = Literal["vllm", "scripted", "openai", "pair"]
Tokens = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]

_TIME_SLACK = 1e-6
"""Seconds by which float sums may differ before a relation counts as broken."""


def utc_now() -> str:
    """The present instant, UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear-interpolated percentile (``share`` in 0..1) of ``values``; ``None`` when there are none."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class TurnCounts(FrozenModel):
    """Tokens of one turn by what the engine did with them.

    Relations (checked on construction wherever all terms are known)::

        prompt_tokens  = cached_tokens + prefill_tokens
        prefill_tokens = quantized_tokens + exact_tokens
    """

    prompt_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    prefill_tokens: Tokens | None = None
    quantized_tokens: Tokens | None = None
    exact_tokens: Tokens | None = None
    decode_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    recomputed_rows: Tokens | None = None
    preemptions: Tokens | None = None

    @model_validator(mode="after")
    def _relations(self) -> TurnCounts:
        prompt, cached, prefill = self.prompt_tokens, self.cached_tokens, self.prefill_tokens
        if prompt is not None and cached is not None and prefill is not None and prompt != cached + prefill:
            raise ValueError(f"prompt_tokens {prompt} is not cached_tokens {cached} + prefill_tokens {prefill}")
        quantized, exact = self.quantized_tokens, self.exact_tokens
        if prefill is not None and quantized is not None and exact is not None and prefill != quantized + exact:
            raise ValueError(f"prefill_tokens {prefill} is not quantized_tokens {quantized} + exact_tokens {exact}")
        return self


class TurnTimes(FrozenModel):
    """Seconds of one turn by phase.

    Relations (checked on construction wherever all terms are known)::

        ttft_seconds  = queue_seconds + prefill_seconds + delivery_seconds
        total_seconds >= ttft_seconds
    """

    queue_seconds: Seconds | None = None
    prefill_seconds: Seconds | None = None
    delivery_seconds: Seconds | None = None
    ttft_seconds: Seconds | None = None
    decode_seconds: Seconds | None = None
    transfer_seconds: Seconds | None = None
    itl_mean_seconds: Seconds | None = None
    itl_p50_seconds: Seconds | None = None
    itl_p95_seconds: Seconds | None = None
    total_seconds: Seconds | None = None
    timing_source: Literal["engine", "client"] | None = None

    @model_validator(mode="after")
    def _relations(self) -> TurnTimes:
        parts = (self.queue_seconds, self.prefill_seconds, self.delivery_seconds)
        if self.ttft_seconds is not None and None not in parts:
            whole = sum(part for part in parts if part is not None)
            if abs(self.ttft_seconds - whole) > _TIME_SLACK:
                raise ValueError(f"ttft_seconds {self.ttft_seconds} is not queue + prefill + delivery = {whole}")
        total, ttft = self.total_seconds, self.ttft_seconds
        if total is not None and ttft is not None and total + _TIME_SLACK < ttft:
            raise ValueError(f"total_seconds {total} is below ttft_seconds {ttft}")
        return self


class TurnRecord(TurnCounts, TurnTimes):
    """One model call inside an agent's loop.

    Attributes:
        turn_id: unique id of this turn.
        run_id: id of the LangChain run, when there was one.
        thread_id: LangGraph thread, when there was one.
        turn_index: AI messages in the input, so it survives restarts.
        policy: name of the precision policy.
        prefill_format, decode_format: formats actually used, after ``auto`` was resolved.
        device: what the engine ran on, as its capabilities name it; ``None`` where a remote engine does not say.
        emulated: quantized rows were computed by an emulation, whose times say nothing about speed.
        tool_seconds_before: tool time since the turn before; ``None`` until the store knows it.
        tool_calls: names of the tools called, in order.
        aborted: the turn was cancelled before its end. Its prompt is counted from the first token on.
        error: one line, when the turn failed.
    """

    record_version: int = RECORD_VERSION
    turn_id: str
    run_id: str | None = None
    thread_id: str | None = None
    turn_index: Annotated[int, Field(ge=0)] = 0
    model: str
    engine: EngineName
    policy: str
    prefill_format: str | None = None
    decode_format: str | None = None
    emulated: bool | None = None
    device: str | None = None
    started_at: str
    tool_seconds_before: Seconds | None = None
    finish_reason: str | None = None
    tool_calls: tuple[str, ...] = ()
    aborted: bool = False
    error: str | None = None
