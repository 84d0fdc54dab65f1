"""What agents do: sessions of turns, whose context grows by tool results and answers, with tools between the turns.

The default comes from public figures: 43 turns a session, 142K tokens in and 444 out a turn, 96 % of them cached
(AgentX); a tool is back within one second in 86 %, within ten in 95 % of all turns (vllm-project/router#285).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from mixquant_agents.validation import FrozenConfig

__all__ = ["TurnDraw", "Workload", "session"]

Tokens = Annotated[int, Field(ge=1)]
Spread = Annotated[float, Field(ge=0, le=3)]

_Z86, _Z95 = 1.0803, 1.6449
"""Standard normal quantiles of 86 and 95 %."""
LONGEST_TOOL = 600.0
"""Seconds: a tool that takes longer is not waited for within a session."""


class Workload(FrozenConfig):
    """Agents of one kind.

    Attributes:
        turns: of one session; then the agent begins another.
        shared_tokens: beginning of every prompt, the same for all agents (system prompt and tools).
        own_tokens: what a session begins with beside it.
        tool_tokens: mean length of what comes new with each turn (a tool's result).
        answer_tokens: mean length of an answer.
        spread: standard deviation of the logarithm of both lengths; 0 for constant ones.
        max_context: tokens at which a conversation is summarised: the next turn begins with ``summary_tokens``.
        summary_tokens: of a summary.
        tool_p86_seconds, tool_p95_seconds: within how long 86 and 95 % of the tools are back (log-normal between).
        turns_per_minute: most turns a minute and agent; ``None`` for as many as tools and engine allow.
        ramp_seconds: agents start spread over so long.
    """

    turns: Tokens = 43
    shared_tokens: Annotated[int, Field(ge=0)] = 7168
    own_tokens: Tokens = 1024
    tool_tokens: Tokens = 5200
    answer_tokens: Tokens = 444
    spread: Spread = 0.6
    max_context: Tokens = 262_144
    summary_tokens: Tokens = 4096
    tool_p86_seconds: Annotated[float, Field(gt=0)] = 1.0
    tool_p95_seconds: Annotated[float, Field(gt=0)] = 10.0
    turns_per_minute: Annotated[float, Field(gt=0)] | None = None
    ramp_seconds: Annotated[float, Field(ge=0)] = 10.0

    @model_validator(mode="after")
    def _relations(self) -> Workload:
        if self.tool_p95_seconds < self.tool_p86_seconds:
            raise ValueError(f"tool_p95_seconds {self.tool_p95_seconds:g} is below tool_p86_seconds")
        least = self.shared_tokens + self.own_tokens + self.summary_tokens + self.answer_tokens
        if self.max_context < least:
            raise ValueError(
                f"max_context {self.max_context} does not hold a beginning, a summary and an answer ({least} tokens)"
            )
        return self

    def pause(self, draw: TurnDraw, since_asked: float) -> float:
        """Seconds from the end of a turn, ``since_asked`` after it was asked, until its agent asks again."""
        if self.turns_per_minute is None:
            return draw.tool_seconds
        return max(draw.tool_seconds, 60 / self.turns_per_minute - since_asked)


@dataclass(frozen=True, slots=True)
class TurnDraw:
    """One turn of one agent.

    Attributes:
        conversation: changes where nothing of the turn before is kept but the shared beginning.
        prompt: tokens of the whole prompt.
        known: tokens of it that an engine has seen in this conversation: the prompt and the answer before.
        answer: tokens of the answer.
        tool_seconds: between this turn's end and the next one's begin.
    """

    conversation: int
    prompt: int
    known: int
    answer: int
    tool_seconds: float


def session(workload: Workload, agent: int, seed: int = 0) -> Iterator[TurnDraw]:
    """The endless turns of one agent; the same for the same arguments."""
    draw = random.Random(f"{seed}:{agent}")  # noqa: S311 - a workload is no secret
    sigma = math.log(workload.tool_p95_seconds / workload.tool_p86_seconds) / (_Z95 - _Z86)
    mu = math.log(workload.tool_p86_seconds) - _Z86 * sigma
    start = workload.shared_tokens + workload.own_tokens
    conversation = 0
    while True:
        prompt, known = start, 0
        for turn in range(workload.turns):
            answer = _length(draw, workload.answer_tokens, workload.spread)
            if turn:
                prompt = known + _length(draw, workload.tool_tokens, workload.spread)
            if prompt + answer > workload.max_context:
                conversation += 1
                prompt, known = start + workload.summary_tokens, 0
                answer = min(answer, workload.max_context - prompt)
            tool = min(LONGEST_TOOL, math.exp(draw.gauss(mu, sigma)))
            yield TurnDraw(conversation, prompt, known, answer, tool)
            known = prompt + answer
        conversation += 1


def _length(draw: random.Random, mean: int, spread: float) -> int:
    """A log-normal length with this mean."""
    return max(1, round(mean * math.exp(draw.gauss(-spread * spread / 2, spread)))) if spread else mean
