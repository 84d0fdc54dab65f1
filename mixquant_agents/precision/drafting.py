"""When the twin drafts: how many tokens it guesses ahead before the exact weights verify them. Pure.

A cycle drafts ``k`` tokens by ``k`` quantized steps of one row a request and verifies them in one exact step of ``k +
1`` rows. It pays as long as a quantized step costs clearly less than an exact one. The more requests write at once, and
the more KV cache they read, the more of both steps is the same work; and while prompts wait, drafts delay them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DraftRule", "tokens_per_cycle"]


@dataclass(frozen=True, slots=True)
class DraftRule:
    """How many tokens to draft.

    Attributes:
        tokens: drafts of a cycle.
        max_batch: with more requests in a step nothing is drafted.
        max_kv_tokens: nor when they read more tokens of KV cache together.
    """

    tokens: int
    max_batch: int
    max_kv_tokens: int

    def drafts(self, batch: int, kv_tokens: int, prefill_waits: bool) -> int:
        """Tokens to draft for each of ``batch`` requests that hold ``kv_tokens`` of KV cache together."""
        return 0 if self.reason(batch, kv_tokens, prefill_waits) else self.tokens

    def reason(self, batch: int, kv_tokens: int, prefill_waits: bool) -> str:
        """Why nothing is drafted; empty where it is."""
        if prefill_waits:
            return "a prompt waits"
        if batch > self.max_batch:
            return f"more than {self.max_batch} requests"
        if kv_tokens > self.max_kv_tokens:
            return f"more than {self.max_kv_tokens} tokens of KV cache"
        return ""


def tokens_per_cycle(acceptance: float, drafts: int) -> float:
    """Tokens that a cycle yields: the verified ones and one more, each draft right with probability ``acceptance``."""
    return math.fsum(acceptance**i for i in range(drafts + 1))
