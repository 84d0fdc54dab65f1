"""How a local engine's raw text becomes the parsed deltas of the seam: an :class:`OutputParser` reads each piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mixquant_agents.engine.base import Delta, FinishReason, JsonObject, TokenLogprob
from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["OutputParser", "TokenDelta", "parsed"]


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New text of a local engine and its tokens, not parsed; the other fields are those of :class:`Delta`.

    ``prompt_token_ids`` is also on the first: parsers ask them whether reasoning has begun in the prompt.

    Attributes:
        stopped_by: what ended an answer whose finish reason is ``stop``: a ``token``, which is its last, or a stop
            ``word``.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    counts: TurnCounts | None = None
    times: TurnTimes | None = None
    prompt_token_ids: Sequence[int] | None = None
    prompt_change: str | None = None
    stopped_by: Literal["token", "word"] | None = None
    kv_transfer: JsonObject | None = None


class OutputParser(Protocol):
    """Incremental: total cost linear in the text. One parser serves one answer."""

    def feed(self, delta: TokenDelta) -> Delta:
        """The content, reasoning and calls that became certain with ``delta``, in a delta made for it."""
        ...

    def finish(self) -> Delta:
        """What was held back (an unfinished marker is content; an unfinished call is invalid)."""
        ...


def parsed(raw: TokenDelta, parser: OutputParser) -> Delta:
    """The delta of ``raw``; with the last one goes out what the parser held back."""
    delta = parser.feed(raw)
    delta.token_ids, delta.logprobs, delta.counts = raw.token_ids, raw.logprobs, raw.counts
    if raw.finish_reason is not None:
        held = parser.finish()
        delta.content += held.content
        delta.reasoning += held.reasoning
        delta.tool_calls += held.tool_calls
        delta.invalid_calls += held.invalid_calls
        delta.finish_reason, delta.times = raw.finish_reason, raw.times
        delta.prompt_token_ids, delta.prompt_change = raw.prompt_token_ids, raw.prompt_change
        delta.kv_transfer = raw.kv_transfer
    return delta
