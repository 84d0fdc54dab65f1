"""One turn on any engine, stamped token by token, and the figures of several."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mixquant_agents.engine.base import Engine, EngineRequest, Sampling, TokenLogprob
from mixquant_agents.records import TurnCounts

__all__ = ["MeasuredTurn", "common_beginning", "kl_divergence", "latencies", "milliseconds", "run_turn"]

_names = itertools.count()


@dataclass
class MeasuredTurn:
    """What came of one turn.

    Attributes:
        submitted: when it was handed over, in seconds of ``time.monotonic``.
        stamps: when each token came, on the same clock.
        logprobs: one a token, where they were asked for.
    """

    submitted: float
    stamps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    counts: TurnCounts = field(default_factory=TurnCounts)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.submitted

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.stamps)]


async def run_turn(
    engine: Engine, prompt: Sequence[int], answer: int, *, thread: str | None = None, **sampling: Any
) -> MeasuredTurn:
    """One greedy turn of exactly ``answer`` tokens.

    Only turns of the same ``thread`` find cached blocks of each other. They are kept apart by salts, because a reset of
    the prefix cache would fail while a connector holds blocks.
    """
    name = f"pair-{next(_names)}"
    request = EngineRequest(
        request_id=name,
        messages=(),
        prompt_token_ids=tuple(prompt),
        thread_id=thread,
        cache_salt=thread or name,
        sampling=Sampling(temperature=0.0, max_tokens=answer, min_tokens=answer, ignore_eos=True, **sampling),
    )
    turn = MeasuredTurn(time.monotonic())
    async for delta in engine.stream(request):
        turn.stamps += [time.monotonic()] * len(delta.token_ids)
        turn.tokens += delta.token_ids
        turn.logprobs += delta.logprobs
        turn.counts = delta.counts or turn.counts
    return turn


def kl_divergence(exact: TokenLogprob, other: TokenLogprob) -> float:
    """``KL(exact ‖ other)`` in nats over the tokens that both list, with all others as one: a lower bound of the
    divergence over the whole vocabulary."""
    p, q = _probabilities(exact), _probabilities(other)
    pairs = [(p[text], q[text]) for text in p if text in q]
    p_rest, q_rest = (
        max(1e-9, 1 - sum(shares)) for shares in ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    )
    return max(0.0, sum(a * math.log(a / b) for a, b in [*pairs, (p_rest, q_rest)] if a > 0))


def _probabilities(token: TokenLogprob) -> dict[str, float]:
    """Probabilities of the listed tokens by text: two tokens may have the same."""
    probabilities: dict[str, float] = {}
    for text, logprob in token.top:
        probabilities[text] = probabilities.get(text, 0.0) + math.exp(logprob)
    return probabilities


def common_beginning(tokens: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, other, strict=False)))


def latencies(turns: Sequence[MeasuredTurn]) -> dict[str, float | None]:
    """TTFT and TPOT of cold turns, in milliseconds; no TPOT where all answers have one token."""
    gaps = [gap for turn in turns for gap in turn.gaps]
    return {
        "ttft_p50_ms": milliseconds(statistics.median(turn.ttft for turn in turns)),
        "ttft_least_ms": milliseconds(min(turn.ttft for turn in turns)),
        "ttft_most_ms": milliseconds(max(turn.ttft for turn in turns)),
        "tpot_ms": milliseconds(statistics.mean(gaps)) if gaps else None,
    }


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to a microsecond."""
    return None if seconds is None else round(seconds * 1000, 3)
