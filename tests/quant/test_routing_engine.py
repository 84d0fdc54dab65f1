"""Routing on the real engine: its own row counts equal what the rule says, whatever the scheduler does."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from mixquant_agents.config import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.engine.base import Delta, EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.records import TurnCounts

pytestmark = pytest.mark.engine
numbers = itertools.count()
FACTS = ("Rome was founded by a legend.", "The Tiber runs through it.", "Carthage fell in the third war.")


def asked(text: str, tokens: int, *, salt: str | None = None, history: tuple[str, ...] = ()) -> EngineRequest:
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": part} for role, part in zip(roles, (*history, text), strict=False)]
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=0)
    return EngineRequest(request_id=f"q{next(numbers)}", messages=messages, sampling=sampling, cache_salt=salt)


def long_text(words: int, start: int = 0) -> str:
    return " ".join(FACTS[i % 3] + f" {i}" for i in range(start, start + words // 6))


async def run(engine: VllmEngine, request: EngineRequest, after: float = 0.0) -> list[Delta]:
    await asyncio.sleep(after)
    return [delta async for delta in engine.stream(request)]


def counts(deltas: list[Delta]) -> TurnCounts:
    found = deltas[-1].counts
    assert found is not None
    return found


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def follows_the_rule(found: TurnCounts, *, exact_rows: int) -> None:
    """``exact_rows`` of the prompt exact, the rest of what was not cached quantized."""
    assert found.prompt_tokens is not None
    assert found.cached_tokens is not None
    assert found.exact_tokens == exact_rows
    assert found.quantized_tokens == found.prompt_tokens - found.cached_tokens - exact_rows


@pytest.mark.parametrize(
    ("policy", "exact_rows"),
    [
        ("mixquant-nvfp4-plain", 1),
        ("mixquant-fp8", 0),
        ("mixquant-int8", 0),
        ("uniform-nvfp4", 0),
        ("uniform-fp8", 0),
        (PrecisionPolicy(prefill_format="fp8", exact_last_token=True), 1),
        (PrecisionPolicy(prefill_format="nvfp4", exact_last_token=False), 0),
        (PrecisionPolicy(prefill_format="nvfp4", reproducible=True), 1),
        (PrecisionPolicy(prefill_format="nvfp4", weight_only=True), 1),
    ],
)
async def test_solo(engine: VllmEngine, policy: str | PrecisionPolicy, exact_rows: int) -> None:
    status = await engine.set_policy(policy)
    assert status["emulated"] is True
    found = counts(await run(engine, asked(long_text(120), 4)))
    follows_the_rule(found, exact_rows=exact_rows)
    assert (found.recomputed_rows, found.preemptions) == (0, 0)


async def test_exact_runs_nothing_quantized(engine: VllmEngine) -> None:
    status = await engine.set_policy("exact")
    assert (status["prefill_format"], status["routed_layers"]) == ("exact", 0)
    found = counts(await run(engine, asked(long_text(120), 4)))
    assert (found.quantized_tokens, found.exact_tokens) == (0, found.prefill_tokens)


async def test_six_staggered_requests_in_mixed_batches(engine: VllmEngine) -> None:
    """Prompts longer than a step's 512 rows are chunked, beside others that already write."""
    requests = [asked(long_text(words, words), 12) for words in (30, 480, 60, 240, 6, 120)]
    found = await asyncio.gather(*(run(engine, request, 0.15 * i) for i, request in enumerate(requests)))
    for deltas in found:
        follows_the_rule(counts(deltas), exact_rows=1)
        assert len(tokens(deltas)) == 12
    assert max(counts(deltas).prompt_tokens or 0 for deltas in found) > 512


async def test_hot_prefix(engine: VllmEngine) -> None:
    text = long_text(200)
    cold, warm = [counts(await run(engine, asked(text, 2, salt="hot"))) for _ in range(2)]
    follows_the_rule(cold, exact_rows=1)
    follows_the_rule(warm, exact_rows=1)
    assert cold.cached_tokens == 0
    # What is left is at most one KV block, which holds 128 tokens on a CPU.
    assert 0 < (warm.prefill_tokens or 0) <= 128
    assert (warm.cached_tokens or 0) >= 128


async def test_multi_turn(engine: VllmEngine) -> None:
    history: tuple[str, ...] = ()
    cached = []
    for i in range(3):
        question = long_text(90, i)
        deltas = await run(engine, asked(question, 16, salt="turns", history=history))
        follows_the_rule(counts(deltas), exact_rows=1)
        cached.append(counts(deltas).cached_tokens or 0)
        history = (*history, question, "".join(delta.content for delta in deltas))
    assert cached[0] == 0
    assert 0 < cached[1] < cached[2]


async def test_preempted_requests_count_recomputed_rows_apart_and_write_what_they_write_alone(
    engine: VllmEngine,
) -> None:
    """The cache holds 16 blocks of 128 tokens; eight of these begin in two blocks and need a third.

    With the rounding of activations taken out, a resumed request writes what it writes alone, so its recomputed answer
    rows ran exact.
    """
    await engine.set_policy(PrecisionPolicy(prefill_format="nvfp4", weight_only=True))
    texts = [long_text(132, 10 * i) for i in range(8)]
    crowd = await asyncio.gather(*(run(engine, asked(text, 40, salt=f"c{i}")) for i, text in enumerate(texts)))
    found = [counts(deltas) for deltas in crowd]
    for each in found:
        follows_the_rule(each, exact_rows=1)
        assert ((each.recomputed_rows or 0) > 0) <= ((each.preemptions or 0) > 0), "recomputed without a preemption"
    assert sum(each.recomputed_rows or 0 for each in found) > 0
    preempted = next(i for i, each in enumerate(found) if each.preemptions)
    assert tokens(await run(engine, asked(texts[preempted], 40, salt="alone"))) == tokens(crowd[preempted])


async def test_solo_and_concurrent_agree_when_rounding_is_taken_out(engine: VllmEngine) -> None:
    """Weights are rounded alike in any batch; what is left is the order of float32 sums."""
    await engine.set_policy(PrecisionPolicy(prefill_format="nvfp4", weight_only=True))
    texts = [long_text(40 + 20 * i, i) for i in range(6)]
    solo = [await run(engine, asked(text, 16, salt=f"s{i}")) for i, text in enumerate(texts)]
    jobs = (run(engine, asked(text, 16, salt=f"c{i}"), 0.1 * i) for i, text in enumerate(texts))
    together = await asyncio.gather(*jobs)
    for alone, crowd in zip(solo, together, strict=True):
        assert tokens(alone) == tokens(crowd)
        pairs = zip(logprobs(alone), logprobs(crowd), strict=True)
        assert max(abs(a - b) for a, b in pairs) < 2e-3


def logprobs(deltas: list[Delta]) -> list[float]:
    return [entry.logprob for delta in deltas for entry in delta.logprobs]


async def test_ignored_layers_stay_exact(engine: VllmEngine) -> None:
    text = long_text(60)
    exact = await first_logprob(engine, "exact", text)
    nothing = PrecisionPolicy(prefill_format="nvfp4", ignored_layers=("re:.*",))
    part = PrecisionPolicy(prefill_format="nvfp4", ignored_layers=("q_proj", "k_proj", "v_proj", "down_proj"))
    assert abs(await first_logprob(engine, nothing, text) - exact) < 1e-5
    assert abs(await first_logprob(engine, part, text) - exact) > 1e-4
    status = await engine.set_policy(part)
    assert status["routed_layers"] == 60


async def first_logprob(engine: VllmEngine, policy: str | PrecisionPolicy, text: str) -> float:
    await engine.set_policy(policy)
    return logprobs(await run(engine, asked(text, 1)))[0]


async def test_nested_storage_of_weights_beyond_bf16_is_refused_and_the_policy_stays(engine: VllmEngine) -> None:
    """The embedded model has float32 weights, and this engine keeps them."""
    with pytest.raises(FormatRefusedError, match=r"'fp8-emulated-nested' holds .* set dtype 'bfloat16'"):
        await engine.set_policy(PrecisionPolicy(prefill_format="fp8", storage="nested"))
    follows_the_rule(counts(await run(engine, asked(long_text(30), 2))), exact_rows=1)
    assert (await engine.set_policy("mixquant-fp8"))["storage"] == "separate"


async def test_status_says_what_runs_and_what_it_costs(engine: VllmEngine) -> None:
    status = await engine.set_policy("mixquant-nvfp4-plain")
    expected: dict[str, Any] = {
        "policy": "mixquant-nvfp4-plain",
        "fingerprint": POLICY_PRESETS["mixquant-nvfp4-plain"].fingerprint,
        "prefill_format": "nvfp4",
        "decode_format": "exact",
        "emulated": True,
        "native": False,
        "device": "cpu",
        "row_threshold": 0,
        "exact_last_token": True,
        "routed_layers": 120,
    }
    assert {name: status[name] for name in expected} == expected
    assert "NVFP4" in status["reason"]
    # All Linear weights of the blocks again, in float32, for each format used so far; never lm_head or embeddings.
    assert status["twin_bytes"] >= 30 * 4 * (960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536)
    assert status["weight_bytes"] == 134_515_008 * 4


async def test_wrong_policies_leave_the_engine_as_it_was(engine: VllmEngine) -> None:
    half = PrecisionPolicy(prefill_format="nvfp4", ignored_layers=("q_proj",))
    with pytest.raises((ConfigError, FormatRefusedError), match="k_proj"):
        await engine.set_policy(half)
    found = counts(await run(engine, asked(long_text(30), 2)))
    follows_the_rule(found, exact_rows=1)
