"""A static beginning on the real engine: read exact once, lent to every policy, and nothing else is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.base import Delta, EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.beginnings import PATIENCE
from mixquant_agents.records import TurnCounts

pytestmark = pytest.mark.engine

NVFP4 = PrecisionPolicy(prefill_format="nvfp4", exact_static_prefix=True)
FP8 = PrecisionPolicy(prefill_format="fp8", exact_static_prefix=True)
SYSTEM = " ".join(f"Rule {number}: the lamp on floor {number} is checked at night." for number in range(22))
BLOCK = 128
"""Tokens of a KV block on a CPU."""
numbers = itertools.count()


def question(words: int) -> str:
    return " ".join(f"On floor {number} the lamp was out." for number in range(words // 7)) + " What is to be done?"


def asked(text: str, salt: str) -> EngineRequest:
    return EngineRequest(
        request_id=f"static{next(numbers)}",
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
        sampling=Sampling(temperature=0.0, max_tokens=1, logprobs=0),
        cache_salt=salt,
    )


async def run(engine: VllmEngine, request: EngineRequest) -> tuple[TurnCounts, list[Delta]]:
    deltas = [delta async for delta in engine.stream(request)]
    found = deltas[-1].counts
    assert found is not None
    return found, deltas


def first_logprob(deltas: list[Delta]) -> float:
    return next(delta.logprobs[0].logprob for delta in deltas if delta.logprobs)


async def test_static_beginning_is_read_exact_once_and_lent_to_every_policy(engine: VllmEngine) -> None:
    await engine.set_policy("exact")
    fresh, exact_answer = await run(engine, asked(question(200), "alone"))
    await engine.set_policy(NVFP4)
    cold, _ = await run(engine, asked(question(200), "static"))
    static = (cold.exact_tokens or 0) - 1  # the last prompt token is exact, too
    assert static >= BLOCK
    assert static % BLOCK == 0
    assert (cold.cached_tokens, cold.lent_tokens) == (0, 0)
    assert cold.quantized_tokens == (cold.prompt_tokens or 0) - static - 1
    assert (cold.prompt_tokens or 0) >= static + 2 * BLOCK, "a block behind the static part is needed below"

    other, _ = await run(engine, asked("Where is floor 3?", "static"))
    assert (other.cached_tokens, other.lent_tokens, other.exact_tokens) == (static, static, 1)

    # Another policy takes the static blocks, and none of those that were read in NVFP4.
    await engine.set_policy(FP8)
    lent, _ = await run(engine, asked(question(200), "static"))
    assert (lent.cached_tokens, lent.lent_tokens, lent.exact_tokens) == (static, static, 0)

    # So does the exact policy: what it answers is what it answers alone.
    await engine.set_policy("exact")
    found, deltas = await run(engine, asked(question(200), "static"))
    assert (found.cached_tokens, found.lent_tokens) == (static, 0)
    assert found.exact_tokens == (found.prompt_tokens or 0) - static
    assert fresh.cached_tokens == 0
    assert first_logprob(deltas) == pytest.approx(first_logprob(exact_answer), abs=1e-3)

    # Back again: of the whole prompt that the exact policy has left in the cache, the static part alone is lent, and
    # what was read in NVFP4 before is still there.
    await engine.set_policy(NVFP4)
    again, _ = await run(engine, asked(question(200), "static"))
    assert again.lent_tokens == static
    assert (again.cached_tokens or 0) > static
    await engine.set_policy(PrecisionPolicy(prefill_format="nvfp4"))
    own, _ = await run(engine, asked(question(200), "static"))
    assert (own.cached_tokens, own.lent_tokens) == (0, 0)


async def test_beginning_that_was_read_ahead_is_lent_to_the_first_request(engine: VllmEngine) -> None:
    await engine.set_policy(NVFP4)
    whole = asked("Anything", "ahead")
    tokens = await engine.prefetch(replace(whole, messages=whole.messages[:1]))
    assert tokens >= BLOCK
    await engine.set_policy(FP8)
    first, _ = await run(engine, asked("Where is floor 3?", "ahead"))
    assert (first.cached_tokens, first.lent_tokens, first.exact_tokens) == (tokens, tokens, 0)


async def test_beginnings_that_nobody_shares_are_soon_read_quantized(engine: VllmEngine) -> None:
    """One-shot prompts with tools of their own: their rows are worth nothing to others, so they are read fast."""
    await engine.set_policy(NVFP4)

    def alone(number: int, text: str = "Anything") -> EngineRequest:
        request = asked(text, "alone")
        system = f"House {number}. {SYSTEM[: len(SYSTEM) // 2]}"
        return replace(request, messages=[{"role": "system", "content": system}, *request.messages[1:]])

    for number in range(PATIENCE):
        await run(engine, alone(number))
    lone, _ = await run(engine, alone(PATIENCE))
    assert lone.exact_tokens == 1, "the last prompt token"
    assert (lone.quantized_tokens or 0) > BLOCK
    shared, _ = await run(engine, alone(PATIENCE, "Where is floor 3?"))
    assert (shared.lent_tokens, shared.cached_tokens) == (0, 0), "what was read quantized is lent to nobody"
    assert (shared.exact_tokens or 0) > BLOCK
    third, _ = await run(engine, alone(PATIENCE, "Who has the key?"))
    assert (third.lent_tokens or 0) >= BLOCK
