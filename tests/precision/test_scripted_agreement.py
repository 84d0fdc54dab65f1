"""The scripted engine counts what the plugin's own accounting counts, for every policy and prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedEngine
from mixquant_agents.precision.formats import FORMATS
from mixquant_agents.precision.plan import RequestRows
from mixquant_agents.precision.policy import POLICY_PRESETS, PrecisionPolicy
from mixquant_agents.precision.static_prefix import StaticPrefix
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.records import TurnCounts

CPU = DeviceInfo("cpu", "cpu")
POLICIES = {
    **POLICY_PRESETS,
    **{
        f"{name}, last token exact={last}": PrecisionPolicy(prefill_format=name, exact_last_token=last)
        for name in FORMATS
        for last in (True, False)
    },
}


async def scripted_counts(policy: PrecisionPolicy, prompts: list[int], static: int = 0) -> list[TurnCounts]:
    """What the last of several prompts counts; each begins as the one before."""
    engine = ScriptedEngine(["word"], cycle=True, policy=policy)
    counts = []
    for length in prompts:
        ids = list(range(length))
        request = EngineRequest(request_id="r", messages=[], prompt_token_ids=ids, static_tokens=static)
        counts.append([delta.counts async for delta in engine.stream(request)][-1])
    return [count for count in counts if count is not None]


def plugin_counts(policy: PrecisionPolicy, prompt: int, cached: int, chunk: int, static: int = 0) -> tuple[int, int]:
    """Quantized and exact prompt rows of the same prompt in the plugin, read in chunks, then decoded."""
    runtime = Runtime(policy, CPU, switchable=True)
    runtime.requests_changed([("r", StaticPrefix(static, "exact") if static else None)], ())
    for computed in range(cached, prompt, chunk):
        runtime.begin_step()
        runtime.plan_step([RequestRows("r", prompt, computed, min(chunk, prompt - computed))])
        runtime.end_step()
    runtime.plan_step([RequestRows("r", prompt, prompt, 1)])
    counts = runtime.counter.read(["r"])["r"]
    return counts.quantized, counts.exact


@pytest.mark.parametrize("name", POLICIES)
async def test_scripted_counts_equal_the_plugins(name: str) -> None:
    policy = POLICIES[name]
    for prompt in range(1, 41):
        counts = (await scripted_counts(policy, [prompt]))[-1]
        assert (counts.quantized_tokens, counts.exact_tokens) == plugin_counts(policy, prompt, 0, prompt)


@given(st.sampled_from(sorted(POLICIES)), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_scripted_counts_equal_the_plugins_behind_a_cached_beginning(
    name: str, earlier: int, prompt: int, chunk: int
) -> None:
    import asyncio

    counts = asyncio.run(scripted_counts(POLICIES[name], [earlier, prompt]))[-1]
    cached = counts.cached_tokens
    assert cached is not None
    assert (counts.quantized_tokens, counts.exact_tokens) == plugin_counts(POLICIES[name], prompt, cached, chunk)


@given(st.integers(0, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_static_beginnings_count_alike(static: int, earlier: int, prompt: int, chunk: int) -> None:
    import asyncio

    policy = PrecisionPolicy(prefill_format="nvfp4", exact_static_prefix=True)
    counts = asyncio.run(scripted_counts(policy, [earlier, prompt], static))[-1]
    cached = counts.cached_tokens
    assert cached is not None
    blocks = min(static, prompt) // 16 * 16
    assert (counts.quantized_tokens, counts.exact_tokens) == plugin_counts(policy, prompt, cached, chunk, blocks)
    assert counts.lent_tokens == min(cached, blocks)


async def test_uniform_nvfp4_counts_no_exact_prompt_token() -> None:
    counts = (await scripted_counts(PrecisionPolicy.of("uniform-nvfp4"), [7]))[-1]
    assert (counts.quantized_tokens, counts.exact_tokens) == (7, 0)
