"""The real engine on the embedded model: streaming, counts, sharing among loops, cancellation, refusals."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import engine_requests
import pytest
from engine_requests import ADD

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.base import Delta, Engine, EngineRequest, NamedTool, Sampling
from mixquant_agents.engine.vllm import EngineStats, VllmEngine
from mixquant_agents.errors import ConfigError, ContextOverflowError, GrammarError, InvalidSamplingError, RequestError

pytestmark = pytest.mark.engine


def asked(question: str, tokens: int = 8, **fields: Any) -> EngineRequest:
    return engine_requests.asked([{"role": "user", "content": question}], tokens, **fields)


async def turn(engine: VllmEngine, request: EngineRequest) -> list[Delta]:
    return [delta async for delta in engine.stream(request)]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.content for delta in deltas)


async def until(engine: VllmEngine, holds: Callable[[EngineStats], bool], seconds: float = 10.0) -> EngineStats:
    """The first statistics that satisfy ``holds``."""
    end = time.monotonic() + seconds
    while not holds(stats := await engine.stats()):
        assert time.monotonic() < end, stats
        await asyncio.sleep(0.01)
    return stats


async def test_a_turn_streams_and_is_counted_and_timed(engine: VllmEngine) -> None:
    assert isinstance(engine, Engine)
    deltas = await turn(engine, asked("What is the capital of France?", tokens=12))
    assert len(deltas) > 3  # not one lump
    assert text(deltas).strip()
    last = deltas[-1]
    assert last.finish_reason in ("stop", "length")
    assert last.counts is not None
    assert last.times is not None
    counts, times = last.counts, last.times
    assert counts.prompt_tokens == len(last.prompt_token_ids or ())
    assert counts.quantized_tokens == (counts.prefill_tokens or 0) - 1  # NVFP4 keeps the last prompt token exact
    assert counts.exact_tokens == 1
    assert counts.decode_tokens == sum(len(delta.token_ids) for delta in deltas)
    assert (counts.recomputed_rows, counts.preemptions) == (0, 0)
    assert times.timing_source == "engine"
    assert times.ttft_seconds is not None
    assert 0 < times.ttft_seconds <= (times.total_seconds or 0)
    assert times.itl_p50_seconds is not None
    assert engine.start_seconds is not None
    assert engine.start_seconds > 1


async def test_counting_tokens_agrees_with_the_turn(engine: VllmEngine) -> None:
    request = asked("Hello there", tokens=1, tools=[ADD])
    deltas = await turn(engine, request)
    assert deltas[-1].counts is not None
    assert await engine.count_tokens(request.messages, request.tools) == deltas[-1].counts.prompt_tokens


async def test_info_says_what_runs(engine: VllmEngine) -> None:
    able = engine.info
    assert (able.engine, able.policy, able.prefill_format, able.decode_format) == (
        "vllm",
        "mixquant-nvfp4-plain",
        "nvfp4",
        "exact",
    )
    assert able.emulated is True  # this machine has no FP4 arithmetic, and says so
    assert able.max_model_len == 2048


async def test_several_loops_and_sync_callers_share_it(engine: VllmEngine) -> None:
    answers: dict[int, str] = {}

    def sync_caller(place: int) -> None:
        answers[place] = text(asyncio.run(turn(engine, asked("Name a colour."))))

    threads = [threading.Thread(target=sync_caller, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    mine = text(await turn(engine, asked("Name a colour.")))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert [answers[place] for place in range(3)] == [mine] * 3


async def test_prefixes_are_cached_by_salt_and_policy(engine: VllmEngine) -> None:
    question = f"{random.random()} " + "The quick brown fox jumps over the lazy dog. " * 16  # noqa: S311

    async def cached(**fields: Any) -> int:
        deltas = await turn(engine, asked(question, tokens=1, **fields))
        counts = deltas[-1].counts
        assert counts is not None
        assert counts.cached_tokens is not None
        assert counts.prompt_tokens == counts.cached_tokens + (counts.prefill_tokens or 0)
        return counts.cached_tokens

    assert await cached() == 0
    assert await cached() >= 128
    assert await cached(cache_salt="tenant") == 0
    assert await cached(cache_salt="tenant") >= 128
    await engine.set_policy("exact")
    assert await cached() == 0  # policies never share blocks
    assert await cached() >= 128
    await engine.set_policy("mixquant-nvfp4-plain")
    assert await cached() >= 128


async def test_a_third_cancelled_leaves_nothing_behind(engine: VllmEngine) -> None:
    chosen = random.Random(7).sample(range(16), 8)  # noqa: S311  reproducible, not secret

    async def one(place: int) -> str:
        try:
            async for delta in engine.stream(asked(f"{place}: tell a story", sampling=endless(24))):
                assert delta
        except asyncio.CancelledError:
            return "cancelled"
        return "finished"

    tasks = [asyncio.create_task(one(place)) for place in range(16)]
    await until(engine, lambda stats: stats.running > 8, 60)
    for place in chosen:
        tasks[place].cancel()
        await asyncio.sleep(0.02)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result == "finished" for result in results) == 8
    stats = await until(engine, lambda stats: stats.running == 0)
    assert (stats.waiting, stats.unfinished, stats.kv_cache_usage) == (0, 0, 0.0)


def endless(tokens: int = 1500) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)


@pytest.mark.parametrize("way", ["cancel", "break", "close"])
async def test_an_abandoned_stream_aborts_within_a_step(engine: VllmEngine, way: str) -> None:
    seen = asyncio.Event()

    async def read() -> None:
        """Four steps, then leave in one of three ways; a stream left by ``break`` is closed when it is collected."""
        steps = 0
        stream = engine.stream(asked("Count to a thousand.", sampling=endless()))
        async for _ in stream:
            steps += 1
            if steps == 4:
                seen.set()
                if way == "break":
                    return
                if way == "close":
                    await stream.aclose()
                    return

    task = asyncio.create_task(read())
    await seen.wait()
    if way == "cancel":
        assert (await until(engine, lambda stats: stats.running == 1)).kv_cache_usage > 0
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    began = time.monotonic()
    stats = await until(engine, lambda stats: stats.running == 0)
    assert (stats.unfinished, stats.kv_cache_usage) == (0, 0.0)
    assert time.monotonic() - began < 2  # one step; the answer would have taken minutes


async def test_what_does_not_fit_never_reaches_the_engine(engine: VllmEngine) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        await turn(engine, asked("word " * 3000))
    assert caught.value.prompt_tokens > 3000
    assert caught.value.max_model_len == 2048
    with pytest.raises(ContextOverflowError, match="max_tokens=2040"):
        await turn(engine, asked("hi", tokens=2040))
    assert (await engine.stats()).unfinished == 0


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"sampling": Sampling(logprobs=500)}, InvalidSamplingError),
        ({"sampling": Sampling(temperature=-1.0)}, InvalidSamplingError),
        ({"sampling": Sampling(extra={"nonsense": 1})}, InvalidSamplingError),
        ({"prompt_token_ids": [999_999]}, RequestError),
        ({"prompt_token_ids": []}, RequestError),
        ({"schema": {"type": "nonsense"}}, GrammarError),
    ],
)
async def test_wrong_requests_are_refused_and_harm_nobody(
    engine: VllmEngine, fields: dict[str, Any], kind: type[Exception]
) -> None:
    other = asyncio.create_task(turn(engine, asked("Name a fruit.")))
    with pytest.raises(kind):
        await turn(engine, asked("hi", **fields))
    assert text(await other)


async def test_forced_calls_and_schemas_are_valid(engine: VllmEngine) -> None:
    for choice in ("required", NamedTool("add")):
        request = asked("Add 3 and 4", 60, tools=[ADD], tool_choice=choice, parallel_tool_calls=False)
        pieces = await turn(engine, request)
        calls = [call for piece in pieces for call in piece.tool_calls]
        assert [call.name for call in calls if call.name] == ["add"]
        arguments = json.loads("".join(call.arguments for call in calls))
        assert set(arguments) == {"a", "b"}
        assert all(isinstance(value, int) for value in arguments.values())
        assert "".join(piece.content for piece in pieces).strip() == ""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert json.loads(text(await turn(engine, asked("Is water wet?", 40, schema=schema))))["ok"] in (True, False)


async def test_stop_seed_and_logprobs(engine: VllmEngine) -> None:
    whole = text(await turn(engine, asked("Write: one two three four", 16)))
    word = whole.split()[1]
    short = await turn(
        engine, asked("Write: one two three four", sampling=Sampling(temperature=0.0, max_tokens=16, stop=(word,)))
    )
    assert word not in text(short)
    assert short[-1].finish_reason == "stop"
    drawn = [
        text(await turn(engine, asked("Invent a word.", sampling=Sampling(temperature=1.5, seed=5, max_tokens=8))))
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    scored = await turn(engine, asked("Hi", sampling=Sampling(temperature=0.0, max_tokens=3, logprobs=2)))
    values = [entry for delta in scored for entry in delta.logprobs]
    assert len(values) == sum(len(delta.token_ids) for delta in scored)
    assert all(entry.logprob <= 0 and len(entry.top) == 2 for entry in values)
    assert all(entry.logprob == max(score for _, score in entry.top) for entry in values)  # greedy


async def test_preempted_turns_are_counted_to_the_end(engine: VllmEngine) -> None:
    before = (await engine.stats()).preempted
    ids = (await turn(engine, asked("x", tokens=1)))[-1].prompt_token_ids or ()
    prompts = [[*ids, *range(300 + 120 * place, 300 + 120 * place + 122 - len(ids))] for place in range(12)]
    requests = [asked("", sampling=endless(16), prompt_token_ids=prompt) for prompt in prompts]
    turns = await asyncio.gather(*(turn(engine, request) for request in requests))
    counts = [deltas[-1].counts for deltas in turns]
    assert (await engine.stats()).preempted > before
    assert sum((count.preemptions or 0) for count in counts if count) >= 1
    for count in counts:
        assert count is not None
        assert (count.quantized_tokens, count.exact_tokens, count.decode_tokens) == (121, 1, 16)
        assert count.recomputed_rows is not None
        assert (count.recomputed_rows > 0) == ((count.preemptions or 0) > 0)


async def test_the_policy_changes_only_on_an_idle_engine(engine: VllmEngine) -> None:
    stream = engine.stream(asked("Count to a thousand.", sampling=endless()))
    await anext(stream)
    with pytest.raises(ConfigError, match="1 turns are running"):
        await engine.set_policy("exact")
    await stream.aclose()
    await until(engine, lambda stats: stats.unfinished == 0)
    status = await engine.set_policy("uniform-nvfp4")
    assert (status["prefill_format"], status["decode_format"]) == ("nvfp4", "nvfp4")
    counts = (await turn(engine, asked("Name a metal.")))[-1].counts
    assert counts is not None
    assert (counts.quantized_tokens, counts.exact_tokens) == (counts.prefill_tokens, 0)
    assert engine.policy == PrecisionPolicy.of("uniform-nvfp4")


async def test_templates_take_variables_and_threads_keep_their_prefix(engine: VllmEngine) -> None:
    first = asked("Hi", 4)
    answer = text(await turn(engine, first))
    messages = [*first.messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "And?"}]
    begin = await engine.count_tokens(first.messages)
    later = (await turn(engine, EngineRequest(request_id="later", messages=messages, sampling=Sampling(max_tokens=1))))[
        -1
    ]
    earlier = (await turn(engine, asked("Hi", 1)))[-1]
    assert (later.prompt_token_ids or ())[:begin] == earlier.prompt_token_ids
