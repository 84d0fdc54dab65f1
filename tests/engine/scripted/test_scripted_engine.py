"""The scripted engine keeps the engine's promises: counts, cache, times, failures, aborts."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents import ScriptedEngine
from mixquant_agents.engine.base import Delta, Engine, EngineRequest, Sampling
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.engine.scripted.prompt import tokenize
from mixquant_agents.errors import ContextOverflowError, EngineClosedError, EngineDeadError, RequestError

USER = [{"role": "user", "content": "Add three and four, please. " * 8}]


def ask(messages: Any = USER, **fields: Any) -> EngineRequest:
    return EngineRequest(request_id="r", messages=messages, **fields)


async def play(engine: ScriptedEngine, request: EngineRequest | None = None) -> list[Delta]:
    return [delta async for delta in engine.stream(request or ask())]


def said(deltas: list[Delta]) -> str:
    return "".join(delta.content for delta in deltas)


async def test_answers_come_in_order() -> None:
    engine = ScriptedEngine(["one", ScriptedTurn(text=["t", "w", "o"])])
    assert isinstance(engine, Engine)
    assert said(await play(engine)) == "one"
    *tokens, last = await play(engine)
    assert [delta.content for delta in tokens] == ["t", "w", "o"]
    assert (last.finish_reason, last.counts.decode_tokens) == ("stop", 3)
    with pytest.raises(RequestError, match="2 answers and this is request 3"):
        await play(engine)
    assert (engine.running, engine.finished, engine.aborted, len(engine.requests)) == (0, 3, 0, 3)


async def test_script_may_be_a_function_or_cycle() -> None:
    async def script(request: EngineRequest) -> str:
        await asyncio.sleep(0)
        return str(request.messages[0]["content"])[:3]

    assert said(await play(ScriptedEngine(script))) == "Add"
    engine = ScriptedEngine(["a", "b"], cycle=True)
    assert [said(await play(engine)) for _ in range(3)] == ["a", "b", "a"]


async def test_cached_tokens_grow_over_an_agents_turns() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3, "b": 4}'}}
    turns = [
        ScriptedTurn(text="I add.", tool_calls=[{"name": "add", "args": {"a": 3, "b": 4}}]),
        "It is seven.",
        "Bye.",
    ]
    engine = ScriptedEngine(turns)
    messages: list[Any] = list(USER)
    counts = []
    for answer in (
        {"role": "assistant", "content": "I add.", "tool_calls": [call]},
        {"role": "tool", "content": "7 " * 40, "tool_call_id": "1"},
        {"role": "assistant", "content": "It is seven."},
    ):
        if answer["role"] != "tool":
            counts.append((await play(engine, ask(messages)))[-1].counts)
        messages.append(answer)
    counts.append((await play(engine, ask([*messages, {"role": "user", "content": "Bye"}])))[-1].counts)
    assert [one.cached_tokens for one in counts] == sorted(one.cached_tokens for one in counts)
    assert counts[0].cached_tokens == 0
    # the second prompt begins with the first and its answer, but for the last, unfilled block
    assert (
        counts[1].cached_tokens >= counts[0].prompt_tokens + counts[0].decode_tokens - 16 > counts[0].prompt_tokens - 16
    )
    assert all(one.cached_tokens % 16 == 0 for one in counts)


async def test_cache_salts_keep_prompts_apart() -> None:
    engine = ScriptedEngine("x", cycle=True)
    await play(engine, ask(cache_salt="a"))
    assert (await play(engine, ask(cache_salt="b")))[-1].counts.cached_tokens == 0
    assert (await play(engine, ask(cache_salt="a")))[-1].counts.cached_tokens > 0


@pytest.mark.parametrize(
    ("policy", "exact_rows", "emulated"),
    [("exact", None, False), ("mixquant", None, False), ("mixquant-nvfp4-plain", 1, True), ("mixquant-fp8", 0, True)],
)
async def test_rows_follow_the_policy(policy: str, exact_rows: int | None, emulated: bool) -> None:
    engine = ScriptedEngine(["x"], policy=policy)
    counts = (await play(engine))[-1].counts
    assert counts.exact_tokens == (counts.prefill_tokens if exact_rows is None else exact_rows)
    assert engine.info.emulated is emulated


async def test_times_add_up_to_the_script() -> None:
    turn = ScriptedTurn(text=["a", "b", "c"], queue_seconds=0.02, prefill_seconds=0.03, token_seconds=0.01)
    times = (await play(ScriptedEngine([turn])))[-1].times
    assert times.timing_source == "engine"
    assert times.queue_seconds >= 0.019
    assert times.prefill_seconds >= 0.029
    assert times.decode_seconds >= 0.019
    assert times.total_seconds >= times.ttft_seconds + times.decode_seconds - 1e-6


async def test_sampling_settings_are_honoured() -> None:
    limits = Sampling(max_tokens=2, logprobs=2)
    *tokens, last = await play(ScriptedEngine([ScriptedTurn(text=["a", "b", "c"])]), ask(sampling=limits))
    assert (len(tokens), last.finish_reason) == (2, "length")
    assert [len(delta.logprobs[0].top) for delta in tokens] == [2, 2]
    stopped = await play(ScriptedEngine(["one two STOP three"]), ask(sampling=Sampling(stop=("STOP",))))
    assert said(stopped) == "one two "
    calls = [{"name": "f", "args": {}}, {"name": "g", "args": {}}]
    only = await play(ScriptedEngine([ScriptedTurn(tool_calls=calls)]), ask(parallel_tool_calls=False))
    assert said(only).count("<tool_call>") == 1


async def test_failures_come_where_the_script_says() -> None:
    turn = ScriptedTurn(text=["a", "b"], fail_after=1)
    engine = ScriptedEngine([turn, ValueError("mine"), "ok"])
    stream = engine.stream(ask())
    assert (await anext(stream)).content == "a"
    with pytest.raises(EngineDeadError):
        await anext(stream)
    with pytest.raises(ValueError, match="mine"):
        await play(engine)
    assert said(await play(engine)) == "ok"
    with pytest.raises(ContextOverflowError):
        await play(ScriptedEngine(["x"], max_model_len=16))


async def test_turn_that_is_left_is_aborted() -> None:
    engine = ScriptedEngine([ScriptedTurn(text=["a", "b"], hang_after=1)], cycle=True)
    stream = engine.stream(ask())
    await anext(stream)
    assert engine.running == 1
    await stream.aclose()
    assert (engine.running, engine.aborted) == (0, 1)
    task = asyncio.create_task(play(engine))
    await asyncio.sleep(0.01)
    assert engine.running == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (engine.running, engine.aborted) == (0, 2)


async def test_hanging_turn_is_woken_by_closing_from_another_thread() -> None:
    engine = ScriptedEngine([ScriptedTurn(hang_after=0)])
    task = asyncio.create_task(play(engine))
    await asyncio.sleep(0.01)
    threading.Thread(target=lambda: asyncio.run(engine.aclose())).start()
    with pytest.raises(EngineClosedError):
        await asyncio.wait_for(task, 5)
    with pytest.raises(EngineClosedError):
        await play(engine)


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text
