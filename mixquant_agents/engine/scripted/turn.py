"""One scripted answer, and the token deltas it is played as."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from mixquant_agents.engine.base import Delta, EngineRequest, FinishReason, TokenLogprob, ToolCallDelta, new_call_id
from mixquant_agents.engine.hermes import THINK_CLOSE, THINK_OPEN
from mixquant_agents.engine.parsing import TokenDelta
from mixquant_agents.engine.scripted.prompt import calls_text, token_id, tokenize
from mixquant_agents.errors import ConfigError

__all__ = ["Played", "ScriptedTurn", "play"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedTurn:
    """One answer.

    Attributes:
        text: what is said. A string is cut into tokens; the strings of a list are the tokens.
        reasoning: what is thought before.
        tool_calls: ``{"name": …, "args": {…}}`` each; ``args`` may be a string, sent as it is, to play invalid JSON;
            ``id`` may be given where ``parsed`` is set.
        parsed: give reasoning and calls out parsed, as a remote engine does, instead of as Hermes text.
        finish_reason: instead of the one that follows from the answer.
        queue_seconds, prefill_seconds: time before the prompt is begun, and until the first token.
        token_seconds: time between two tokens.
        fail_after: raise ``error`` after that many tokens.
        error: what to raise; ``EngineDeadError`` when ``None``.
        hang_after: after that many tokens nothing comes any more, until the turn is cancelled or the engine closed.

    Raises:
        ConfigError: a call has no name, a token is no string, or a time is negative.
    """

    text: str | Sequence[str] = ""
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    parsed: bool = False
    finish_reason: FinishReason | None = None
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    token_seconds: float = 0.0
    fail_after: int | None = None
    error: BaseException | None = None
    hang_after: int | None = None

    def __post_init__(self) -> None:
        for call in self.tool_calls:
            if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
                raise ConfigError(f'the scripted call {call!r} has no name; write {{"name": …, "args": {{…}}}}')
        if not isinstance(self.text, str) and not all(isinstance(token, str) for token in self.text):
            raise ConfigError(f"the scripted text is {self.text!r}; give a string, or a list of strings")
        if self.finish_reason not in (None, *get_args(FinishReason)):
            known = ", ".join(get_args(FinishReason))
            raise ConfigError(f"finish_reason={self.finish_reason!r} is unknown; choose one of {known}")
        if min(self.queue_seconds, self.prefill_seconds, self.token_seconds) < 0:
            raise ConfigError("the seconds of a scripted turn cannot be negative")


@dataclass(frozen=True, slots=True)
class Played:
    """A turn's deltas, one per token and to be parsed yet unless the turn is ``parsed``, without the last that carries
    the counts.

    Attributes:
        visible: the raw text, which the prefix cache learns.
        reasoning_tokens: how many of the deltas are reasoning.
    """

    deltas: list[Delta | TokenDelta]
    finish_reason: FinishReason
    visible: str
    reasoning_tokens: int


def play(turn: ScriptedTurn, request: EngineRequest) -> Played:
    """The deltas of ``turn`` under the request's ``stop``, ``max_tokens``, ``logprobs`` and ``parallel_tool_calls``."""
    calls = [_call(call) for call in turn.tool_calls]
    parsed = turn.parsed and request.tool_choice != "none"  # then calls are text, as in every engine
    if not request.parallel_tool_calls:
        calls = calls[:1]
    content = list(tokenize(turn.text)) if isinstance(turn.text, str) else list(turn.text)
    content, stopped = _until_stop(content, request.sampling.stop)
    if stopped:
        calls = []
    thought = _thoughts(turn)
    called = "" if parsed else calls_text(((name, text) for name, text, _ in calls), after_text=any(content))
    texts = [*thought, *content, *tokenize(called)]
    alternatives = request.sampling.logprobs
    made = {text: TokenDelta(text, (token_id(text),), _logprobs(text, alternatives)) for text in set(texts)}
    deltas: list[Delta | TokenDelta] = [made[text] for text in texts]
    if turn.parsed:
        deltas = [
            Delta("" if reasoning else text, text if reasoning else "", token_ids=raw.token_ids, logprobs=raw.logprobs)
            for reasoning, text, raw in ((at < len(thought), text, made[text]) for at, text in enumerate(texts))
        ]
    if parsed:
        deltas += _parsed_calls(calls, alternatives)
    limit = request.sampling.max_tokens
    cut = limit is not None and len(deltas) > limit
    reason: FinishReason = "length" if cut else turn.finish_reason or ("tool_calls" if calls else "stop")
    deltas = deltas[:limit]
    visible = "".join(texts[len(thought) if turn.parsed else 0 : len(deltas)])
    return Played(deltas, reason, visible, min(len(thought), len(deltas)))


def _call(call: Mapping[str, Any]) -> tuple[str, str, str]:
    arguments = call.get("args", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return str(call["name"]), text, str(call.get("id") or new_call_id())


def _thoughts(turn: ScriptedTurn) -> list[str]:
    if not turn.reasoning:
        return []
    text = turn.reasoning if turn.parsed else f"{THINK_OPEN}\n{turn.reasoning}\n{THINK_CLOSE}\n\n"
    return list(tokenize(text))


def _parsed_calls(calls: Sequence[tuple[str, str, str]], alternatives: int | None) -> list[Delta]:
    deltas = []
    for index, (name, text, call_id) in enumerate(calls):
        pieces = [ToolCallDelta(index, call_id, name), *(ToolCallDelta(index, arguments=p) for p in tokenize(text))]
        deltas += [
            Delta(
                token_ids=(token_id(piece.arguments),),
                tool_calls=(piece,),
                logprobs=_logprobs(piece.arguments or name, alternatives),
            )
            for piece in pieces
        ]
    return deltas


def _until_stop(tokens: list[str], stop: Sequence[str]) -> tuple[list[str], bool]:
    """``tokens`` up to the first occurrence of a stop string, which is not part of the answer."""
    text = "".join(tokens)
    ends = [end for end in (text.find(word) for word in stop if word) if end >= 0]
    if not ends:
        return tokens, False
    left, kept = min(ends), []
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept, True


def _logprobs(text: str, count: int | None) -> tuple[TokenLogprob, ...]:
    """Made-up log probabilities that are at least ordered: the chosen token first."""
    if count is None:
        return ()
    top = [(text, -0.1), *((f"{text}~{rank}", -0.1 - rank) for rank in range(1, count))][:count]
    return (TokenLogprob(text, -0.1, tuple(top)),)
