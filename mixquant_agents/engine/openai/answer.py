"""What a server's events add up to. Servers leave fields out, null them or fill them with something else: what is no
text is no text, what is no count is unknown, and neither ends an answer that goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mixquant_agents.engine.base import Delta, FinishReason, TokenLogprob
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.openai.events import DONE, Unreadable
from mixquant_agents.engine.openai.timings import ServerMetrics
from mixquant_agents.engine.openai.tool_calls import ToolCallReader
from mixquant_agents.records import TurnCounts, TurnTimes
from mixquant_agents.unicode import well_formed

__all__ = ["REASONING_FIELDS", "Answer"]

REASONING_FIELDS = ("reasoning", "reasoning_content")
"""Fields of a delta that hold reasoning: vLLM's present name, and the one of DeepSeek and of earlier vLLM."""

_MOST_TOKENS = 2**53
"""A count above it is no count."""

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "abort": "abort",
}
"""Servers' words, in lower case; any other word is ``"stop"``."""


class Answer:
    """Reads the events of one answer.

    Args:
        most_calls: how many calls the request allows; ``None`` for any number.

    Attributes:
        reasoning_field: under which name the server sent reasoning; ``None`` until it does.
        unreadable: the first thing that is no part of a chat completion; ``None`` while there is none.
        failure: the server's word that the answer failed; ``None`` while it has not said so.
        finished: the server has said why the answer ended. Nothing that comes later can fail it.
        done: the server has said that it has said all.
        streamed: something of the answer was given out.
        lost_content: a content was there that could not be read.
    """

    def __init__(self, most_calls: int | None = None) -> None:
        self._finish: str | None = None
        self._streams = False
        self._usage: dict[str, int] = {}
        self._calls = ToolCallReader(most_calls)
        self._metrics = ServerMetrics()
        self._kv_transfer: Mapping[str, Any] | None = None
        self.reasoning_field: str | None = None
        self.failure: Any = None
        self.unreadable: str | None = None
        self.lost_content = False
        self.done = False
        self.streamed = False

    @property
    def finished(self) -> bool:
        return self._finish is not None

    @property
    def complete(self) -> bool:
        """The server has ended the answer, in whatever way, and some of it could be read, if it held anything."""
        return (self.finished or (self.done and self.streamed)) and not (self.lost_content and not self.streamed)

    def take(self, event: object) -> Delta | None:
        """The delta of one event; ``None`` where it holds no output."""
        if event is DONE:
            self.done = True
            return None
        if not isinstance(event, Mapping):
            self._cannot_read(event)
            return None
        self._take_usage(event.get("usage"))
        if isinstance(metrics := event.get("metrics"), Mapping):
            self._metrics = ServerMetrics.of(metrics)
        if isinstance(kv_transfer := event.get("kv_transfer_params"), Mapping):
            self._kv_transfer = kv_transfer
        if _is_error(error := event.get("error")) or event.get("object") == "error":
            self._fail(error or event)
            return None
        choice = _first_choice(event.get("choices"))
        if choice is None:
            return None
        self._take_usage(choice.get("usage"))  # some servers' place for it
        message = choice.get("delta")
        if message is None and isinstance(choice.get("text"), str):  # the older form, of completions
            message = {"content": choice["text"]}
        self._streams = self._streams or isinstance(message, Mapping)
        if not self._streams:  # the server gives the answer whole
            message = choice.get("message") or message
        delta = self._delta(message, choice.get("logprobs"))
        reason = _finish_reason(choice.get("finish_reason"))
        if reason is not None and reason.lower() == "error":
            self._fail("the answer ended with an error")
        else:
            self._finish = reason or self._finish
        return delta

    def end(self, meter: TurnMeter) -> Delta:
        """The last delta: finish reason, counts, times."""
        reason: FinishReason = _FINISH.get((self._finish or "stop").lower(), "stop")
        if self._calls and reason == "stop":
            reason = "tool_calls"
        pieces, invalid = self._calls.finish(complete=reason == "tool_calls")
        counts = self._metrics.counts(self._counts())
        return Delta(
            tool_calls=pieces,
            invalid_calls=invalid,
            finish_reason=reason,
            counts=counts,
            times=self._metrics.times(_times(meter, counts.decode_tokens)),
            kv_transfer=self._kv_transfer,
        )

    def _delta(self, message: object, logprobs: object) -> Delta | None:
        if not isinstance(message, Mapping):
            if message:
                self.lost_content = True
                self._cannot_read(message)
            message = {}
        content, reasoning = self._texts(message.get("content"))
        if not content and isinstance(refusal := message.get("refusal"), str):
            content = refusal
        for field in REASONING_FIELDS:
            if isinstance(value := message.get(field), str) and value:
                reasoning, self.reasoning_field = reasoning + value, field
                break
        calls = self._calls.take(message.get("tool_calls") or message.get("function_call"))
        token_logprobs = tuple(_logprobs(logprobs))
        if content or reasoning or calls:
            self.streamed = True
        if not (content or reasoning or calls or token_logprobs):
            return None
        return Delta(content, reasoning, calls, logprobs=token_logprobs)

    def _texts(self, content: object) -> tuple[str, str]:
        """Text and reasoning of a delta's content: a string, or a list of blocks, as Mistral sends with thoughts."""
        if isinstance(content, str):
            return content, ""
        text, reasoning = "", ""
        for block in content if isinstance(content, list) else [] if content is None else [content]:
            if isinstance(block, str):
                text += block
            elif isinstance(block, Mapping) and isinstance(block.get("text"), str):
                text += block["text"]
            elif isinstance(block, Mapping) and "thinking" in block:
                pieces = self._texts(block["thinking"])
                reasoning += "".join(pieces)
            else:
                self.lost_content = True
                self._cannot_read(block)
        return text, reasoning

    def _cannot_read(self, value: object) -> None:
        if self.unreadable is None:
            self.unreadable = value if isinstance(value, Unreadable) else repr(value)

    def _fail(self, error: object) -> None:
        if self.finished:
            self._cannot_read({"error": error})
        elif self.failure is None:
            self.failure = error

    def _take_usage(self, usage: object) -> None:
        """Note the counts; a later one replaces an earlier, an unknown one does not."""
        if not isinstance(usage, Mapping):
            return
        prompt_details, answer_details = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        given = {
            "prompt": (usage.get("prompt_tokens"), usage.get("input_tokens")),
            "completion": (usage.get("completion_tokens"), usage.get("output_tokens")),
            "cached": (
                prompt_details.get("cached_tokens") if isinstance(prompt_details, Mapping) else None,
                usage.get("cached_tokens"),  # Moonshot's place for it
                usage.get("prompt_cache_hit_tokens"),  # DeepSeek's name
            ),
            "reasoning": (answer_details.get("reasoning_tokens") if isinstance(answer_details, Mapping) else None,),
        }
        counts = {name: next(filter(_known, map(_count, values)), None) for name, values in given.items()}
        self._usage |= {name: value for name, value in counts.items() if value is not None}

    def _counts(self) -> TurnCounts:
        """The server's counts. One that contradicts the whole it is a part of is unknown."""
        prompt, completion = self._usage.get("prompt"), self._usage.get("completion")
        cached, reasoning = self._usage.get("cached"), self._usage.get("reasoning")
        if cached is not None and prompt is not None and cached > prompt:
            cached = None
        if reasoning is not None and completion is not None and reasoning > completion:
            reasoning = None
        return TurnCounts(
            prompt_tokens=prompt,
            cached_tokens=cached,
            prefill_tokens=prompt - cached if prompt is not None and cached is not None else None,
            decode_tokens=completion,
            reasoning_tokens=reasoning,
        )


def _first_choice(choices: object) -> Mapping[str, Any] | None:
    """The one choice that was asked for."""
    if not isinstance(choices, list):
        return None
    readable = [choice for choice in choices if isinstance(choice, Mapping)]
    return next((choice for choice in readable if not choice.get("index")), readable[0] if readable else None)


def _is_error(value: object) -> bool:
    """Whether an event's ``error`` is one. Some servers send one of nothing but empty fields with each event."""
    return any(value.values()) if isinstance(value, Mapping) else bool(value)


def _finish_reason(value: object) -> str | None:
    """A finish reason, in whatever words; ``None`` while there is none (some servers write ``""`` or "null" then)."""
    return str(value) if value and str(value).lower() not in ("null", "none") else None


def _known(value: int | None) -> bool:
    return value is not None


def _count(value: object) -> int | None:
    """A number of tokens; ``None`` for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _logprobs(logprobs: object) -> Iterable[TokenLogprob]:
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    for item in content if isinstance(content, list) else ():
        chosen = _token(item)
        if chosen is not None:
            top = item.get("top_logprobs")
            others = [_token(other) for other in top] if isinstance(top, list) else []
            yield TokenLogprob(*chosen, tuple(other for other in others if other is not None))


def _token(item: object) -> tuple[str, float] | None:
    """A token and its log probability; ``None`` where the server tells only one of them, or neither."""
    if not isinstance(item, Mapping):
        return None
    token, value = item.get("token"), item.get("logprob")
    if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return (well_formed(token), number) if not math.isnan(number) else None


def _times(meter: TurnMeter, tokens: int | None) -> TurnTimes:
    """The client's times; the mean gap is by the server's token count, because a chunk may hold several tokens."""
    times = meter.times()
    if times.decode_seconds is None or tokens is None or tokens < 2:
        return times
    return times.model_copy(update={"itl_mean_seconds": times.decode_seconds / (tokens - 1)})
