"""Chat completions on the wire: engine request → body, server's chunks → token deltas. Needs no ``openai`` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.protocol import (
    EngineRequest,
    FinishReason,
    Message,
    NamedTool,
    OutputDelta,
    TokenDelta,
    TokenLogprob,
    ToolCallDelta,
)
from mixquant_agents.errors import RemoteEngineError, RequestError
from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["Answer", "ParsedAnswers", "wire_body", "wire_messages"]


class ParsedAnswers:
    """The parser of answers that come parsed.

    Args:
        calls: whether the request allows calls; those of a server that makes some all the same are reported as invalid.
    """

    def __init__(self, *, calls: bool = True) -> None:
        self._allowed = calls
        self._refused: dict[int, list[str]] = {}

    def feed(self, delta: TokenDelta) -> OutputDelta:
        if self._allowed:
            return OutputDelta(delta.text, delta.reasoning, delta.tool_calls)
        for piece in delta.tool_calls:
            self._refused.setdefault(piece.index, []).append((piece.name or "") + piece.arguments)
        return OutputDelta(delta.text, delta.reasoning)

    def finish(self) -> OutputDelta:
        reason = "the server called a tool although tool_choice is 'none'"
        return OutputDelta(invalid_calls=tuple(("".join(pieces), reason) for pieces in self._refused.values()))


class Answer:
    """What a server's chunks add up to."""

    def __init__(self) -> None:
        self._finish: str | None = None
        self._usage: Any = None
        self._calls: dict[int, str] = {}
        self._places: dict[int | None, tuple[int, str | None]] = {}
        """The server's index of a call → ours, and the call's id."""

    def take(self, chunk: Any) -> TokenDelta | None:
        """The delta of one chunk; ``None`` where it holds no output."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self._finish = choice.finish_reason or self._finish
        delta = choice.delta
        calls = tuple(self._call(piece) for piece in delta.tool_calls or ())
        reasoning = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None) or ""
        content = choice.logprobs.content if choice.logprobs is not None else None
        logprobs = tuple(
            TokenLogprob(item.token, item.logprob, tuple((top.token, top.logprob) for top in item.top_logprobs))
            for item in content or ()
        )
        if not (delta.content or calls or reasoning or logprobs):
            return None
        return TokenDelta(delta.content or "", (), reasoning, calls, logprobs)

    def end(self, meter: TurnMeter, url: str) -> TokenDelta:
        """The last delta: finish reason, counts, times."""
        if self._finish is None:
            raise RemoteEngineError(f"{url} ended the answer in the middle, without a finish reason")
        known = self._finish if self._finish in get_args(FinishReason) else "stop"
        reason: FinishReason = "tool_calls" if self._calls and known == "stop" else known  # type: ignore[assignment]
        # A call without arguments is complete once the server says that the answer is.
        empty = tuple(ToolCallDelta(index, arguments="{}") for index, text in self._calls.items() if not text)
        counts = self._counts()
        return TokenDelta(
            tool_calls=empty if reason == "tool_calls" else (),
            finish_reason=reason,
            counts=counts,
            times=_times(meter, counts.decode_tokens),
        )

    def _call(self, piece: Any) -> ToolCallDelta:
        function = piece.function
        name = function.name if function is not None else None
        arguments = (function.arguments if function is not None else None) or ""
        index, known = self._places.get(piece.index, (len(self._calls), piece.id))
        if name and piece.id and known and piece.id != known:  # some servers give all calls one index, or none
            index, known = len(self._calls), piece.id
        self._places[piece.index] = index, known
        self._calls[index] = self._calls.get(index, "") or arguments[:1]
        return ToolCallDelta(index, piece.id, name, arguments)

    def _counts(self) -> TurnCounts:
        usage = self._usage
        if usage is None:
            return TurnCounts()
        cached = getattr(usage.prompt_tokens_details, "cached_tokens", None)
        return TurnCounts(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=cached,
            prefill_tokens=None if cached is None else usage.prompt_tokens - cached,
            decode_tokens=usage.completion_tokens,
            reasoning_tokens=getattr(usage.completion_tokens_details, "reasoning_tokens", None),
        )


def _times(meter: TurnMeter, tokens: int | None) -> TurnTimes:
    """The client's times; the mean gap is by the server's token count, because a chunk may hold several tokens."""
    times = meter.times()
    if times.decode_seconds is None or tokens is None or tokens < 2:
        return times
    return times.model_copy(update={"itl_mean_seconds": times.decode_seconds / (tokens - 1)})


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """vLLM reads an earlier answer's reasoning under ``reasoning``."""
    return [
        {**message, "reasoning": message["reasoning_content"]} if "reasoning_content" in message else {**message}
        for message in messages
    ]


def wire_body(request: EngineRequest, model: str) -> dict[str, Any]:
    """The arguments of ``chat.completions.create``; what OpenAI does not know goes into ``extra_body``."""
    if request.prompt_token_ids is not None:
        raise RequestError("a remote engine renders the messages itself; leave prompt_token_ids out")
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": wire_messages(request.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "top_p", "max_tokens", "presence_penalty", "frequency_penalty", "seed"):
        if (value := getattr(sampling, name)) is not None:
            body[name] = value
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if request.tools:
        choice = request.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice
        body |= {"tools": list(request.tools), "tool_choice": named}
        if not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if request.schema is not None:
        body["response_format"] = (
            {"type": "json_object"}
            if request.json_mode or dict(request.schema) == {"type": "object"}
            else {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.schema, "strict": True}}
        )
    extra: dict[str, Any] = dict(sampling.extra)
    for name in ("top_k", "min_p", "min_tokens", "repetition_penalty"):
        if (value := getattr(sampling, name)) is not None:
            extra[name] = value
    if sampling.ignore_eos:
        extra["ignore_eos"] = True
    if request.chat_template_kwargs:
        extra["chat_template_kwargs"] = dict(request.chat_template_kwargs)
    if request.cache_salt is not None:
        extra["cache_salt"] = request.cache_salt
    if request.priority:
        extra["priority"] = request.priority
    if extra:
        body["extra_body"] = extra
    if request.trace_context:
        body["extra_headers"] = dict(request.trace_context)
    return body
