"""Requests that are wrong, huge or dear: each ends with its own error, and no other turn is held up by it."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel, VllmEngine
from mixquant_agents.engine.base import EngineRequest, Sampling
from mixquant_agents.errors import ContextOverflowError, GrammarError, InvalidSamplingError, RequestError

pytestmark = pytest.mark.engine

USER = [{"role": "user", "content": "Hello"}]


async def read(engine: VllmEngine, **fields: Any) -> str:
    request = EngineRequest(**{"request_id": "hostile", "messages": USER, **fields})
    return "".join([delta.content async for delta in engine.stream(request)])


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"sampling": Sampling(stop=("\ud800",))}, InvalidSamplingError, "surrogate"),
        ({"sampling": Sampling(extra={"bad_words": ["\udfff"]})}, InvalidSamplingError, "bad_words"),
        ({"sampling": Sampling(extra={"extra_args": {"x": object()}})}, InvalidSamplingError, "extra_args"),
        ({"sampling": Sampling(extra={"logit_bias": {"many": 5}})}, InvalidSamplingError, "logit_bias"),
        ({"sampling": Sampling(extra={"stop_token_ids": ["x"]})}, InvalidSamplingError, "stop_token_ids"),
        ({"sampling": Sampling(seed=2**70)}, InvalidSamplingError, "seed"),
        ({"cache_salt": "\ud800"}, RequestError, "cache_salt"),
        ({"cache_salt": 3}, RequestError, "cache_salt"),
        ({"priority": 2**70}, RequestError, "priority"),
        ({"priority": 2**31}, RequestError, "priority"),
        ({"trace_context": {"traceparent": "\ud800"}}, RequestError, "traceparent"),
    ],
)
async def test_unsendable_request_is_refused_and_leaves_nothing(
    engine: VllmEngine, fields: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await read(engine, **fields)
    assert (await engine.stats()).unfinished == 0
    await engine.set_policy("mixquant-nvfp4-plain")  # refused while a turn is running, or leaked


async def test_failure_on_the_way_to_the_core_leaves_nothing(engine: VllmEngine, monkeypatch: Any) -> None:
    running = engine._handle.running
    assert running is not None
    core = running.llm.engine_core

    async def failing(request: Any) -> None:
        raise OverflowError("too large for the wire")

    with monkeypatch.context() as patch:
        patch.setattr(core, "add_request_async", failing)
        with pytest.raises(Exception, match="too large for the wire"):
            await read(engine)
    assert (await engine.stats()).unfinished == 0
    await engine.set_policy("mixquant-nvfp4-plain")
    assert await read(engine, sampling=Sampling(max_tokens=2))


async def test_bias_keys_may_be_text(engine: VllmEngine) -> None:
    """As OpenAI's JSON has them. A bias of 100 makes the token certain."""
    for bias in ({"42": 100}, {42: 100.0}):
        request = EngineRequest(
            request_id="bias", messages=USER, sampling=Sampling(max_tokens=1, temperature=0, extra={"logit_bias": bias})
        )
        deltas = [delta async for delta in engine.stream(request)]
        assert [token for delta in deltas for token in delta.token_ids] == [42]


def tool(pattern: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}, "required": ["a"]}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


async def gaps_beside(engine: VllmEngine, work: Awaitable[Any]) -> tuple[Any, float]:
    """The outcome of ``work``, and the longest silence of a stream that ran beside it."""
    gaps: list[float] = []
    begun = asyncio.Event()
    sampling = Sampling(max_tokens=1500, ignore_eos=True)

    async def stream() -> None:
        last = None
        async for _ in engine.stream(EngineRequest(request_id="beside", messages=USER, sampling=sampling)):
            now = time.monotonic()
            if last is not None:
                gaps.append(now - last)
            last = now
            begun.set()

    beside = asyncio.create_task(stream())
    await begun.wait()
    outcome = (await asyncio.gather(work, return_exceptions=True))[0]
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    return outcome, max(gaps, default=0.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool("^(a{1,200}){1,200}$")], "tool_choice": "required"},
        {"schema": deep(300)},
        {"schema": {"anyOf": [{"const": f"constant {index}"} for index in range(16_000)]}},
        {"schema": {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(1_500)}}},
    ],
    ids=["repetitions", "300 levels", "16,000 constants", "1,500 optional properties"],
)
async def test_dear_schema_ends_as_grammar_error_and_holds_up_nobody(engine: VllmEngine, fields: Any) -> None:
    outcome, gap = await gaps_beside(engine, read(engine, **fields))
    assert isinstance(outcome, GrammarError), outcome
    assert gap < 3, gap
    began = time.monotonic()
    with pytest.raises(GrammarError):
        await read(engine, **fields)
    assert time.monotonic() - began < 3, "the outcome is remembered"
    assert await read(engine, schema={"type": "boolean"}, sampling=Sampling(max_tokens=4)) in ("true", "false")


async def test_cancelled_turn_ends_the_work_on_its_schema(engine: VllmEngine) -> None:
    fields = {"tools": [tool("^((a{1,300}b?){1,7}c{1,300}){1,9}$")], "tool_choice": "required"}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(engine, **fields), 0.2)
    running = engine._handle.running
    assert running is not None
    await asyncio.sleep(0.2)
    assert running._grammars._helper is None


async def test_huge_message_is_refused_by_its_characters(engine: VllmEngine) -> None:
    model = MixQuantChatModel(engine=engine)
    huge = "All work and no play makes Jack a dull boy. " * 500_000  # 22 MB
    outcome, gap = await gaps_beside(engine, model.ainvoke([HumanMessage(huge)]))
    assert isinstance(outcome, ContextOverflowError), outcome
    assert outcome.at_least
    assert gap < 3, gap


async def test_large_message_is_tokenized_beside_others(engine: VllmEngine) -> None:
    """Below the bound by characters, above the one of the window: 900,000 characters take about a second."""
    text = "A sentence of some length. " * 33_000

    async def others() -> float:
        longest = 0.0
        for _ in range(5):
            began = time.monotonic()
            await engine.count_tokens(USER)
            longest = max(longest, time.monotonic() - began)
        return longest

    await engine.count_tokens([{"role": "user", "content": "x" * 250_000}])  # the second tokenizer is loaded
    large = asyncio.create_task(engine.count_tokens([{"role": "user", "content": text}]))
    await asyncio.sleep(0.05)
    waited = await others()
    assert not large.done()
    assert waited < 0.5
    assert await large > 150_000
