"""The incremental core of a turn: the engine's deltas in, message chunks out. Pure: no clock, no event loop, no engine.

Sync and async, streaming and not: every way through the chat model is this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, TypeGuard

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from mixquant_agents.chat.messages import REASONING, UNPARSED
from mixquant_agents.chat.tool_calls import ToolCallAccumulator, seal
from mixquant_agents.engine.base import Delta, TokenLogprob, ToolCallDelta, new_call_id
from mixquant_agents.records import TurnCounts
from mixquant_agents.unicode import SurrogateJoiner, well_formed

__all__ = ["AnswerAccumulator", "combined_llm_output", "give_reasons", "llm_output", "usage_of"]


class AnswerAccumulator:
    """Turns one answer's deltas into message chunks.

    Args:
        tools: names of the bound tools.

    Attributes:
        calls: the answer's tool calls so far.
        finish_reason: why the answer ended, once the engine has said so.
    """

    def __init__(self, tools: Collection[str] = ()) -> None:
        self._invalid: list[tuple[str, str]] = []
        self._content_pieces, self._reasoning_pieces = SurrogateJoiner(), SurrogateJoiner()
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._tail: dict[str, Any] | None = None
        self.calls = ToolCallAccumulator(tools)
        self.finish_reason: str | None = None

    def feed(self, delta: Delta) -> AIMessageChunk | None:
        """The chunk for what became certain with ``delta``; ``None`` when that is nothing yet."""
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
        if delta.logprobs:
            self._logprobs.extend(map(_logprob, delta.logprobs))
        self._invalid += delta.invalid_calls
        content = self._content_pieces.feed(delta.content)
        if not delta.reasoning and not delta.tool_calls:
            if not content:
                return None
            self._content.append(content)
            if not self._logprobs:
                return AIMessageChunk(content=content)
        else:
            self._content.append(content)
        return AIMessageChunk(**self._fields(delta.tool_calls, content, self._reasoning_pieces.feed(delta.reasoning)))

    def close(self) -> None:
        """The engine has said its last: judge the calls. Idempotent."""
        if self._tail is not None:
            return
        content, reasoning = self._content_pieces.finish(), self._reasoning_pieces.finish()
        self._content.append(content)
        self._tail = fields = self._fields((), content, reasoning)
        chunks: list[ToolCallChunk] = fields.setdefault("tool_call_chunks", [])
        unparsed = []
        seals = self.calls.seals()
        if self.finish_reason in ("stop", "tool_calls"):
            self.finish_reason = "tool_calls" if len(seals) < len(self.calls) else "stop"
        for index, call, suffix in seals:
            chunks.append(tool_call_chunk(args=suffix, index=index))
            unparsed.append({"id": call["id"], "text": call["arguments"], "error": call["error"]})
        for index, (raw, reason) in enumerate(self._invalid, self.calls.next_index):
            text, call_id = well_formed(raw), new_call_id()
            chunks.append(tool_call_chunk(args=text + seal(text), id=call_id, index=index))
            unparsed.append({"id": call_id, "text": text, "error": reason})
        fields["tool_call_chunks"] = _one_a_call(chunks)
        if unparsed:
            fields["additional_kwargs"] = {**fields.get("additional_kwargs", {}), UNPARSED: unparsed}

    def last(self, metadata: dict[str, Any], counts: TurnCounts | None) -> AIMessageChunk:
        """The last chunk: what was held back, the seals of unfinished calls, usage, and ``metadata`` (which LangChain
        merges key by key, so it comes once)."""
        self.close()
        fields = self._tail or {}
        usage = usage_of(counts)
        if usage is not None:
            metadata = {**metadata, "token_usage": _token_usage(usage)}
        return AIMessageChunk(
            **{**fields, "response_metadata": {**fields.get("response_metadata", {}), **metadata}},
            usage_metadata=usage,
            chunk_position="last",
        )

    def answer(self) -> dict[str, Any]:
        """The answer so far in the engine's shape."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self.calls:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {key: call[key] for key in ("name", "arguments")}}
                for call in self.calls.listed()
            ]
        return message

    def _fields(self, calls: Iterable[ToolCallDelta], content: str, reasoning: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"content": content}
        if reasoning:
            self._reasoning.append(reasoning)
            fields["additional_kwargs"] = {REASONING: reasoning}
        if chunks := [_call_chunk(self.calls.take(piece)) for piece in calls]:
            fields["tool_call_chunks"] = _one_a_call(chunks)
        if self._logprobs:
            fields["response_metadata"] = {"logprobs": {"content": self._logprobs}}
            self._logprobs = []
        return fields


def give_reasons(message: AIMessage) -> None:
    """Write into each of the message's invalid calls why it is one: LangChain leaves ``error`` empty when it merges
    chunks."""
    reasons = {item["id"]: item["error"] for item in message.additional_kwargs.get(UNPARSED) or ()}
    for call in message.invalid_tool_calls:
        call["error"] = reasons.get(call["id"], call["error"])


def usage_of(counts: TurnCounts | None) -> UsageMetadata | None:
    """LangChain's usage of one turn; ``None`` where the engine did not count."""
    prompt, answer = (counts.prompt_tokens, counts.decode_tokens) if counts is not None else (None, None)
    if counts is None or not _is_count(prompt) or not _is_count(answer):
        return None
    usage = UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)
    if _is_count(counts.cached_tokens):
        usage["input_token_details"] = InputTokenDetails(cache_read=counts.cached_tokens)
    if _is_count(counts.reasoning_tokens):
        usage["output_token_details"] = OutputTokenDetails(reasoning=counts.reasoning_tokens)
    return usage


def _is_count(value: object) -> TypeGuard[int]:
    """An engine of others may count in its own way, which must not cost the answer."""
    return isinstance(value, int) and value >= 0


def _token_usage(usage: UsageMetadata) -> dict[str, int]:
    """By OpenAI's names."""
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }


def llm_output(message: AIMessage) -> dict[str, Any]:
    """What callbacks of LangChain's older kind read of a result."""
    return {name: message.response_metadata[name] for name in _LLM_OUTPUT if name in message.response_metadata}


_LLM_OUTPUT = ("model_name", "token_usage")


def combined_llm_output(outputs: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """:func:`llm_output` of several prompts that were answered in one call: their usage is added up."""
    combined: dict[str, Any] = {}
    total: Counter[str] = Counter()
    for output in outputs:
        if output is not None:
            total.update(output.get("token_usage", {}))
            combined["model_name"] = output.get("model_name")
    return {**combined, "token_usage": dict(total)} if total else combined


def _call_chunk(piece: ToolCallDelta) -> ToolCallChunk:
    return tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)


def _one_a_call(chunks: Iterable[ToolCallChunk]) -> list[ToolCallChunk]:
    """The pieces of each call as one. LangChain joins pieces when it adds a message to another, but takes those of the
    first one as they are: there a second piece would be a call of its own, without id and name."""
    joined: dict[int | None, ToolCallChunk] = {}
    for chunk in chunks:
        before = joined.setdefault(chunk["index"], chunk)
        if before is not chunk:
            args = (before["args"] or "") + (chunk["args"] or "")
            joined[chunk["index"]] = tool_call_chunk(
                name=before["name"] or chunk["name"], args=args, id=before["id"] or chunk["id"], index=chunk["index"]
            )
    return list(joined.values())


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    """OpenAI's shape, which LangChain users know."""
    return {
        "token": well_formed(item.token),
        "logprob": item.logprob,
        "top_logprobs": [{"token": well_formed(token), "logprob": value} for token, value in item.top],
    }
