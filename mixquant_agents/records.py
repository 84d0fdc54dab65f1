"""The record of one turn: one model call inside an agent's loop, counted and timed by phase.

Durations are seconds from one monotonic clock, instants are UTC in ISO 8601. What is not known is ``None``, never 0.

A count or a duration is declared once, as a field of :class:`TurnCounts` or :class:`TurnTimes`; what stands beside its
type (:class:`CountField`, :class:`TimeField`) says how it is named and shown. :data:`PHASES`, :data:`TIMES` and
:data:`COUNTS` list them, and from these lists derive the store's columns, its roll-ups, metrics, spans, the waterfall
and the pages. To add a phase or a counter, add one field here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from mixquant_agents.validation import FrozenModel

__all__ = [
    "COUNTS",
    "PHASES",
    "RECORD_VERSION",
    "TIMES",
    "CountField",
    "EngineName",
    "TimeField",
    "TurnCounts",
    "TurnRecord",
    "TurnTimes",
    "percentile",
    "utc_now",
]

RECORD_VERSION = 1

EngineName = Annotated[str, StringConstraints(min_length=1)]
"""What an engine calls itself in records: ``"vllm"``, ``"openai"``, ``"scripted"``, or the name of anybody's engine."""
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
    position = share * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountField:
    """How one count of a turn is named and shown.

    Attributes:
        field: name of the record's field.
        label: on pages.
        help: one sentence, for metrics.
        role: ``part``: the parts exclude each other, and together they are all tokens that a turn read and wrote;
            ``sum``: a sum of parts; ``detail``: any other count, exported by itself.
    """

    label: str
    help: str
    role: Literal["part", "sum", "detail"] = "detail"
    field: str = ""

    @property
    def name(self) -> str:
        """The field without its unit: ``cached`` of ``cached_tokens``."""
        return self.field.removesuffix("_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeField:
    """How one duration of a turn is named and shown.

    Attributes:
        field: name of the record's field.
        label: on pages.
        help: one sentence, for metrics.
        phase: ``first_token``: one of the phases that follow each other until the first token; ``later``: one after
            it; ``None``: no phase, but measured across phases.
        bounds: which histogram bounds suit it.
        metric: its name in metrics, where that is not the field's without the unit.
        summarized: percentiles and histograms of it are kept and shown.
    """

    label: str
    help: str
    phase: Literal["first_token", "later"] | None = None
    bounds: Literal["first_token", "per_token", "whole"] = "whole"
    metric: str = ""
    summarized: bool = True
    field: str = ""

    @property
    def name(self) -> str:
        """The field without its unit: ``queue`` of ``queue_seconds``."""
        return self.field.removesuffix("_seconds")


class TurnCounts(FrozenModel):
    """Tokens of one turn by what the engine did with them.

    Relations (checked on construction wherever all terms are known)::

        prompt_tokens  = cached_tokens + prefill_tokens
        prefill_tokens = quantized_tokens + exact_tokens
        lent_tokens   <= cached_tokens
    """

    prompt_tokens: Annotated[
        Tokens | None, CountField(label="prompt tokens", help="Tokens of the prompt.", role="sum")
    ] = None
    cached_tokens: Annotated[
        Tokens | None, CountField(label="cached", help="Prompt tokens that came from the prefix cache.", role="part")
    ] = None
    verbatim_tokens: Annotated[
        Tokens | None,
        CountField(label="as written", help="Prompt tokens that earlier turns read and wrote, used as they were."),
    ] = None
    warmed_tokens: Annotated[
        Tokens | None,
        CountField(label="read ahead", help="Cached prompt tokens that a warm-up or a prefetch had read."),
    ] = None
    kept_tokens: Annotated[
        Tokens | None,
        CountField(label="kept", help="Cached prompt tokens that were held for the thread while its tools ran."),
    ] = None
    evicted_tokens: Annotated[
        Tokens | None,
        CountField(label="kept in vain", help="Prompt tokens that were held for the thread and yet not in the cache."),
    ] = None
    lent_tokens: Annotated[
        Tokens | None,
        CountField(label="of them lent", help="Cached prompt tokens that were read exact, for every policy to take."),
    ] = None
    prefill_tokens: Annotated[
        Tokens | None, CountField(label="prefilled", help="Prompt tokens that were computed.", role="sum")
    ] = None
    quantized_tokens: Annotated[
        Tokens | None, CountField(label="quantized rows", help="Prefilled in the policy's low precision.", role="part")
    ] = None
    exact_tokens: Annotated[
        Tokens | None, CountField(label="exact rows", help="Prefilled in the engine's own precision.", role="part")
    ] = None
    decode_tokens: Annotated[
        Tokens | None, CountField(label="answer tokens", help="Tokens of the answer.", role="part")
    ] = None
    reasoning_tokens: Annotated[
        Tokens | None, CountField(label="of them reasoning", help="Answer tokens inside the model's reasoning.")
    ] = None
    draft_cycles: Annotated[
        Tokens | None, CountField(label="draft cycles", help="Steps that verified drafts of the answer.")
    ] = None
    drafted_tokens: Annotated[
        Tokens | None, CountField(label="drafted", help="Tokens of the answer that were drafted, right or wrong.")
    ] = None
    accepted_tokens: Annotated[
        Tokens | None, CountField(label="drafted right", help="Drafted tokens that the exact weights accepted.")
    ] = None
    recomputed_rows: Annotated[
        Tokens | None, CountField(label="rows run again", help="Rows computed again after a preemption.")
    ] = None
    preemptions: Annotated[
        Tokens | None, CountField(label="preemptions", help="How often the engine put the turn aside.")
    ] = None

    @model_validator(mode="after")
    def _relations(self) -> TurnCounts:
        prompt, cached, prefill = self.prompt_tokens, self.cached_tokens, self.prefill_tokens
        if prompt is not None and cached is not None and prefill is not None and prompt != cached + prefill:
            raise ValueError(f"prompt_tokens {prompt} is not cached_tokens {cached} + prefill_tokens {prefill}")
        if self.lent_tokens is not None and cached is not None and self.lent_tokens > cached:
            raise ValueError(f"lent_tokens {self.lent_tokens} is more than cached_tokens {cached}")
        quantized, exact = self.quantized_tokens, self.exact_tokens
        if prefill is not None and quantized is not None and exact is not None and prefill != quantized + exact:
            raise ValueError(f"prefill_tokens {prefill} is not quantized_tokens {quantized} + exact_tokens {exact}")
        drafted, accepted = self.drafted_tokens, self.accepted_tokens
        if drafted is not None and accepted is not None and accepted > drafted:
            raise ValueError(f"accepted_tokens {accepted} is more than drafted_tokens {drafted}")
        return self

    @property
    def tokens_per_cycle(self) -> float | None:
        """Answer tokens that a step yielded which verified drafts; ``None`` where none did."""
        if not self.draft_cycles or self.accepted_tokens is None:
            return None
        return 1 + self.accepted_tokens / self.draft_cycles


class TurnTimes(FrozenModel):
    """Seconds of one turn by phase.

    Relations (checked on construction wherever all terms are known)::

        ttft_seconds  = queue_seconds + prefill_seconds + delivery_seconds   (the phases until the first token;
                        and transfer_seconds between the last two, where two engines share a turn)
        total_seconds >= ttft_seconds
    """

    queue_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="Queue",
            help="Time from submit until the engine scheduled the turn.",
            phase="first_token",
            bounds="first_token",
        ),
    ] = None
    prefill_seconds: Annotated[
        Seconds | None,
        TimeField(label="Prefill", help="Time the engine read the prompt.", phase="first_token", bounds="first_token"),
    ] = None
    transfer_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="KV transfer",
            help="Time from the prefill engine's first token to the decode engine's, in a pair of engines.",
            phase="first_token",
            bounds="first_token",
        ),
    ] = None
    delivery_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="Delivery",
            help="Time the first token took from the engine to the caller.",
            phase="first_token",
            bounds="first_token",
            summarized=False,  # microseconds to a few milliseconds: it is read within a turn, not over many
        ),
    ] = None
    ttft_seconds: Annotated[
        Seconds | None,
        TimeField(label="Time to first token", help="Time to the first token of a turn.", bounds="first_token"),
    ] = None
    decode_seconds: Annotated[
        Seconds | None, TimeField(label="Decode", help="Time the engine wrote the answer.", phase="later")
    ] = None
    itl_mean_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="Between tokens",
            help="Mean time between the tokens of a turn.",
            bounds="per_token",
            metric="inter_token",
        ),
    ] = None
    itl_p50_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="Between tokens, p50",
            help="Median time between the tokens of a turn.",
            bounds="per_token",
            summarized=False,
        ),
    ] = None
    itl_p95_seconds: Annotated[
        Seconds | None,
        TimeField(
            label="Between tokens, p95",
            help="95th percentile of the time between the tokens of a turn.",
            bounds="per_token",
            summarized=False,
        ),
    ] = None
    total_seconds: Annotated[
        Seconds | None, TimeField(label="Whole turn", help="Time of the whole turn.", metric="turn")
    ] = None
    timing_source: Literal["engine", "client"] | None = None

    @model_validator(mode="after")
    def _relations(self) -> TurnTimes:
        parts: dict[str, float | None] = {
            time.name: getattr(self, time.field) for time in PHASES if time.phase == "first_token"
        }
        if parts["transfer"] is None:  # one engine, which has nothing to hand over
            del parts["transfer"]
        if self.ttft_seconds is not None and None not in parts.values():
            whole = sum(part for part in parts.values() if part is not None)
            if abs(self.ttft_seconds - whole) > _TIME_SLACK:
                raise ValueError(f"ttft_seconds {self.ttft_seconds} is not {' + '.join(parts)} = {whole}")
        total, ttft = self.total_seconds, self.ttft_seconds
        if total is not None and ttft is not None and total + _TIME_SLACK < ttft:
            raise ValueError(f"total_seconds {total} is below ttft_seconds {ttft}")
        return self


def _declared(model: type[BaseModel], kind: type[Any]) -> tuple[Any, ...]:
    """What stands beside the fields of ``model``, in the order of the fields."""
    return tuple(
        replace(item, field=field)
        for field, info in model.model_fields.items()
        for item in info.metadata
        if isinstance(item, kind)
    )


COUNTS: tuple[CountField, ...] = _declared(TurnCounts, CountField)
"""Every count of a turn."""
TIMES: tuple[TimeField, ...] = _declared(TurnTimes, TimeField)
"""Every duration of a turn."""
PHASES: tuple[TimeField, ...] = tuple(time for time in TIMES if time.phase is not None)
"""The phases of a turn, in the order in which they follow each other."""


class TurnRecord(TurnCounts, TurnTimes):
    """One model call inside an agent's loop.

    Attributes:
        turn_id: unique id of this turn.
        engine: what the engine calls itself.
        run_id: id of the LangChain run, when there was one.
        thread_id: LangGraph thread, when there was one.
        turn_index: AI messages in the input, so it survives restarts.
        policy: name of the precision policy.
        prefill_format, decode_format: formats actually used, after ``auto`` was resolved.
        device: what the engine ran on, as its capabilities name it; ``None`` where a remote engine does not say.
        emulated: quantized rows were computed by an emulation, whose times say nothing about speed.
        storage: how exact weights and their twins were held, ``"separate"`` or ``"nested"``; ``None``: not known.
        tool_seconds_before: tool time since the turn before of the same agent (a sub-agent's tools are its own, also
            where several run side by side); ``None`` until the store knows it.
        tool_calls: names of the tools called, in order.
        aborted: the turn was cancelled before its end. Its prompt is counted from the first token on.
        prompt_change: why the chat template had to write the history anew although the conversation goes on from an
            earlier turn; ``None`` where nothing had to change.
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
    storage: str | None = None
    device: str | None = None
    started_at: str
    tool_seconds_before: Seconds | None = None
    finish_reason: str | None = None
    tool_calls: tuple[str, ...] = ()
    aborted: bool = False
    prompt_change: str | None = None
    error: str | None = None
