"""When the twin drafts, and what a cycle yields."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.drafting import DraftRule, tokens_per_cycle

RULE = DraftRule(tokens=3, max_batch=16, max_kv_tokens=64_000)


@pytest.mark.parametrize(
    ("batch", "kv_tokens", "waits", "drafts", "reason"),
    [
        (1, 100, False, 3, ""),
        (16, 64_000, False, 3, ""),
        (17, 100, False, 0, "more than 16 requests"),
        (1, 64_001, False, 0, "more than 64000 tokens of KV cache"),
        (1, 100, True, 0, "a prompt waits"),
    ],
)
def test_drafts_by_batch_kv_and_waiting_prompts(
    batch: int, kv_tokens: int, waits: bool, drafts: int, reason: str
) -> None:
    assert RULE.drafts(batch, kv_tokens, waits) == drafts
    assert RULE.reason(batch, kv_tokens, waits) == reason


@given(st.floats(0, 1), st.integers(0, 8))
def test_tokens_of_a_cycle_lie_between_one_and_all(acceptance: float, drafts: int) -> None:
    assert 1 <= tokens_per_cycle(acceptance, drafts) <= 1 + drafts + 1e-9
    assert tokens_per_cycle(0.0, drafts) == 1
    assert tokens_per_cycle(1.0, drafts) == 1 + drafts
