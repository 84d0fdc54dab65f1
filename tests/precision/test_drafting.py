"""When the twin drafts, and what a cycle yields."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.drafting import Acceptance, DraftRule, Probes, gain, tokens_per_cycle

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
    assert RULE.drafts(batch, kv_tokens, waits, 0.95) == drafts
    assert RULE.reason(batch, kv_tokens, waits, 0.95) == reason


@given(st.floats(0, 1), st.integers(0, 8))
def test_tokens_of_a_cycle_lie_between_one_and_all(acceptance: float, drafts: int) -> None:
    assert 1 <= tokens_per_cycle(acceptance, drafts) <= 1 + drafts + 1e-9
    assert tokens_per_cycle(0.0, drafts) == 1
    assert tokens_per_cycle(1.0, drafts) == 1 + drafts


@pytest.mark.parametrize(("drafts", "least"), [(1, 0.73), (3, 0.838), (4, 0.866)])
def test_least_acceptance_that_pays(drafts: int, least: float) -> None:
    assert gain(least + 0.01, drafts, 0.7) > 1 > gain(least - 0.01, drafts, 0.7)
    rule = DraftRule(drafts, 16, 64_000)
    assert rule.drafts(1, 0, False, least + 0.01) == drafts
    assert rule.reason(1, 0, False, least - 0.01) == "too few drafts are right"


def test_acceptance_follows_what_is_seen() -> None:
    """Of 0.8 right, one after the other; a cycle's drafts behind a wrong one say nothing."""
    random = np.random.default_rng(3)
    own = Acceptance(0.99)
    for _ in range(3000):
        right = random.random(3) < 0.8
        own.add(3, 3 if right.all() else int(np.argmin(right)), keep=0.999)
    assert own.rate == pytest.approx(0.8, abs=0.02)


def test_acceptance_of_drafts_that_are_always_wrong_falls_fast() -> None:
    own = Acceptance()
    cycles = 0
    while gain(own.rate, 3, 0.7) >= 1:
        own.add(3, 0)
        cycles += 1
    assert cycles <= 3


@pytest.mark.parametrize(("rate", "steps"), [(0.4, Probes.LONGEST), (0.95, Probes.SHORTEST)])
def test_drafts_are_tried_again_the_sooner_the_more_are_right(rate: float, steps: int) -> None:
    random, own = np.random.default_rng(5), Probes()
    waits = []
    for _ in range(2000):
        own.saw(1, int(random.random() < rate))
        waits.append(own.steps)
    assert float(np.median(waits)) == steps
    assert min(waits) >= Probes.SHORTEST
    assert max(waits) <= Probes.LONGEST


def test_a_step_with_drafts_begins_the_wait_anew() -> None:
    own = Probes()
    for _ in range(Probes.FIRST):
        assert not own.due
        own.step(drafted=False)
    assert own.due
    own.step(drafted=True)
    assert not own.due
