"""When the twin drafts: how many tokens it guesses ahead before the exact weights verify them. Pure.

A cycle drafts ``k`` tokens by ``k`` quantized steps of one row a request and verifies them in one exact step of ``k +
1`` rows. It pays as long as a quantized step costs clearly less than an exact one and most drafts are right. The more
requests write at once, the more of both steps is the same work; and while prompts wait, drafts delay them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["PROBE_DRAFTS", "Acceptance", "DraftRule", "Probes", "gain", "tokens_per_cycle"]

OVERHEAD = 1.03
"""Time of the verified step with its sampling, over that of a step that writes one token. Measured 1.015 to 1.03."""

PROBE_DRAFTS = 1
"""Drafts of a cycle by which drafts that do not pay are tried again: it tells as much of how often they are right as it
costs, and costs a third of a whole cycle."""


@dataclass(frozen=True, slots=True)
class DraftRule:
    """How many tokens to draft.

    Attributes:
        tokens: drafts of a cycle.
        max_batch: with more requests in a step nothing is drafted.
        max_kv_tokens: nor when they have more tokens of KV cache together.
        share: time of a draft step over that of an exact one.
    """

    tokens: int
    max_batch: int
    max_kv_tokens: int
    share: float = 0.7

    def drafts(self, batch: int, kv_tokens: int, prefill_waits: bool, acceptance: float) -> int:
        """Tokens to draft for each of ``batch`` requests that hold ``kv_tokens`` of KV cache together."""
        return 0 if self.reason(batch, kv_tokens, prefill_waits, acceptance) else self.tokens

    def reason(self, batch: int, kv_tokens: int, prefill_waits: bool, acceptance: float) -> str:
        """Why nothing is drafted; empty where it is. ``acceptance``: how often a draft is right."""
        if prefill_waits:
            return "a prompt waits"
        if batch > self.max_batch:
            return f"more than {self.max_batch} requests"
        if kv_tokens > self.max_kv_tokens:
            return f"more than {self.max_kv_tokens} tokens of KV cache"
        if gain(acceptance, self.tokens, self.share) < 1:
            return "too few drafts are right"
        return ""


def tokens_per_cycle(acceptance: float, drafts: int) -> float:
    """Tokens that a cycle yields: the verified ones and one more, each draft right with probability ``acceptance``."""
    return math.fsum(acceptance**i for i in range(drafts + 1))


def gain(acceptance: float, drafts: int, share: float) -> float:
    """How much faster a cycle of ``drafts`` writes than exact steps do; ``share``: a draft step's time over theirs."""
    return tokens_per_cycle(acceptance, drafts) / (OVERHEAD + drafts * share)


class Acceptance:
    """How often drafts have been right of late. Older cycles count less and less.

    It begins with what was seen of other requests, which counts as much as ``weight`` drafts.
    """

    __slots__ = ("_hits", "_trials")

    def __init__(self, begin: float = 0.9, weight: float = 12.0) -> None:
        self._hits, self._trials = begin * weight, weight

    @property
    def rate(self) -> float:
        """Between 0 and 1."""
        return self._hits / self._trials

    def add(self, drafted: int, accepted: int, keep: float = 0.95) -> None:
        """A cycle: of ``drafted`` tokens the first ``accepted`` were right; behind a wrong one nothing is known."""
        self._hits = self._hits * keep + accepted
        self._trials = self._trials * keep + min(accepted + 1, drafted)


class Probes:
    """When drafts that do not pay are tried again: after a number of steps that grows while they are wrong.

    A wrong draft doubles the number and a right one takes a fifth off, so it shrinks where more than three in four are
    right (which is nearly enough to pay) and else stays at its largest: there one cycle of one draft in
    :attr:`LONGEST` steps costs less than 0.1 % of them.
    """

    FIRST = 256
    SHORTEST = 32
    LONGEST = 1024

    __slots__ = ("_steps", "_waited")

    def __init__(self) -> None:
        self._steps: float = self.FIRST
        self._waited = 0

    @property
    def steps(self) -> int:
        """Steps without drafts before they are tried again."""
        return round(self._steps)

    @property
    def due(self) -> bool:
        """Whether they are tried in this step."""
        return self._waited >= self.steps

    def step(self, drafted: bool) -> None:
        """A step was scheduled."""
        self._waited = 0 if drafted else self._waited + 1

    def saw(self, drafted: int, accepted: int) -> None:
        """A cycle of a request: behind its first wrong draft nothing is known."""
        factor = 0.8**accepted * (2.0 if accepted < drafted else 1.0)
        self._steps = min(max(self._steps * factor, self.SHORTEST), self.LONGEST)
