"""A turn that nobody waits for any more ends at once and leaves nothing behind."""

import asyncio
import gc
import random
import threading
import time
import tracemalloc
from asyncio import run_coroutine_threadsafe
from typing import Any

import pytest
from langchain_core.messages import AnyMessage
from langchain_core.runnables import ConfigurableField
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from mixquant_agents import MixQuantChatModel, ScriptedEngine, TurnRecord
from mixquant_agents.chat.loop_thread import loop_thread
from mixquant_agents.engine.scripted import ScriptedTurn

STREAMS = 64
SLOW = ScriptedTurn(text=["x"] * 60, token_seconds=0.0005)
HANGS = ScriptedTurn(text=["a", "b", "c"], hang_after=2)


def engine_of(turn: ScriptedTurn) -> ScriptedEngine:
    return ScriptedEngine(lambda _: turn)


async def settle(engine: ScriptedEngine) -> None:
    """Let the loop run what is ready; a second is never needed."""
    for _ in range(100):
        if engine.running == 0:
            return
        await asyncio.sleep(0.01)


async def test_streams_leave_nothing_when_a_third_is_cancelled() -> None:
    records: list[TurnRecord] = []
    engine = engine_of(SLOW)
    model = MixQuantChatModel(engine=engine, recorders=[records.append])
    draw = random.Random(7)  # noqa: S311 - no secret
    before = asyncio.all_tasks()

    async def read(stop_after: int | None) -> int:
        seen = 0
        async for _ in model.astream("go"):
            seen += 1
            if seen == stop_after:
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
        return seen

    stops = [draw.randrange(1, 58) if place % 3 == 0 else None for place in range(STREAMS)]
    results = await asyncio.gather(*(read(stop) for stop in stops), return_exceptions=True)
    cancelled = [stop is not None for stop in stops]
    assert [isinstance(result, asyncio.CancelledError) for result in results] == cancelled
    assert [result for result in results if isinstance(result, int)] == [61] * cancelled.count(False)
    assert (engine.running, engine.aborted, engine.finished) == (0, sum(cancelled), cancelled.count(False))
    assert asyncio.all_tasks() == before
    await model.aclose()
    assert sorted(record.aborted for record in records) == sorted(cancelled)
    whole = next(record for record in records if not record.aborted)
    for record in records:
        if record.aborted:
            assert 0 < record.decode_tokens < 60
            assert record.prompt_tokens == record.cached_tokens + record.prefill_tokens == whole.prompt_tokens
            assert (record.finish_reason, record.error, record.quantized_tokens) == ("abort", None, None)


@pytest.mark.slow
async def test_memory_does_not_grow_over_many_rounds() -> None:
    """Memory after many rounds of finished, cancelled and abandoned streams is what it was after a few."""
    engine = ScriptedEngine(lambda _: ScriptedTurn(text=["x"] * 20), keep_requests=8)
    model = MixQuantChatModel(engine=engine)

    async def some(rounds: int) -> None:
        for place in range(rounds):
            async for chunk in model.astream("go"):
                if place % 3 == 0 and chunk.content:
                    break
            task = asyncio.create_task(model.ainvoke("go"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.05)
        gc.collect()

    await some(40)
    tracemalloc.start()
    await some(5)
    base = tracemalloc.get_traced_memory()[0]
    await some(60)
    grown = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert engine.running == 0
    assert grown < 60_000, f"{grown} bytes more after 60 rounds"


async def test_ainvoke_that_is_cancelled_aborts_and_reraises() -> None:
    engine = engine_of(HANGS)
    task = asyncio.create_task(MixQuantChatModel(engine=engine).ainvoke("go"))
    await asyncio.sleep(0.02)
    assert engine.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.running, engine.aborted) == (0, 1)


async def test_stream_that_is_left_aborts_when_it_is_closed() -> None:
    engine = engine_of(HANGS)
    stream = MixQuantChatModel(engine=engine).astream("go")
    await anext(stream)
    await stream.aclose()
    assert (engine.running, engine.aborted) == (0, 1)


async def test_stream_that_is_abandoned_is_collected() -> None:
    engine = engine_of(HANGS)
    async for _ in MixQuantChatModel(engine=engine).astream("go"):
        break
    await settle(engine)
    assert (engine.running, engine.aborted) == (0, 1)


async def test_v3_events_that_are_cancelled_abort() -> None:
    engine = engine_of(HANGS)
    stream = await MixQuantChatModel(engine=engine).astream_events("go", version="v3")
    async for _ in stream:
        break
    await stream.aclose()
    await settle(engine)
    assert (engine.running, engine.aborted) == (0, 1)


def test_sync_stream_that_is_left_aborts_before_it_returns() -> None:
    engine = engine_of(HANGS)
    stream = MixQuantChatModel(engine=engine).stream("go")
    next(stream)
    assert engine.running == 1
    stream.close()
    assert (engine.running, engine.aborted) == (0, 1)


def test_loop_thread_survives_collecting_a_forgotten_sync_stream() -> None:
    engine = engine_of(HANGS)

    def forget() -> None:
        stream = MixQuantChatModel(engine=engine).stream("go")
        next(stream)
        circle: list[Any] = [stream]
        circle.append(circle)

    async def collect() -> None:
        gc.collect()

    forget()
    run_coroutine_threadsafe(collect(), loop_thread()._loop).result(5)
    loop_thread().run(settle(engine))
    assert (engine.running, engine.aborted) == (0, 1)


def test_interrupt_of_a_sync_call_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in ``invoke``: the turn does not go on behind the caller's back."""
    from mixquant_agents.chat import loop_thread

    engine = engine_of(HANGS)
    queue_of = loop_thread.queue.SimpleQueue

    class Interrupted:
        def __init__(self) -> None:
            self._inner, self._calls = queue_of(), 0

        def put(self, item: Any) -> None:
            self._inner.put(item)

        def get(self) -> Any:
            self._calls += 1
            if self._calls == 2:
                raise KeyboardInterrupt
            return self._inner.get()

    monkeypatch.setattr(loop_thread.queue, "SimpleQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        MixQuantChatModel(engine=engine).invoke("go")
    assert (engine.running, engine.aborted) == (0, 1)


def test_hook_threads_end_with_a_dropped_model() -> None:
    def hooks() -> int:
        return sum(thread.name == "mixquant-recorder" for thread in threading.enumerate())

    before, records = hooks(), []
    model = MixQuantChatModel(engine=ScriptedEngine(["x"], cycle=True), recorders=[records.append])
    warm = model.configurable_fields(temperature=ConfigurableField("warmth"))
    for place in range(8):
        warm.invoke("go", {"configurable": {"warmth": place / 8}})  # LangChain makes a model for each
    gc.collect()
    end = time.monotonic() + 5
    while hooks() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert (hooks(), len(records)) == (before, 8)


async def test_hook_threads_end_with_close() -> None:
    def alive() -> int:
        """Threads, but for those of asyncio's own pool: how many it keeps is a matter of timing."""
        return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())

    before = alive()
    for _ in range(3):
        async with MixQuantChatModel(engine=ScriptedEngine(["x"]), recorders=[lambda _: None]) as model:
            await model.ainvoke("go")
            assert alive() > before
    for _ in range(100):
        if alive() <= before:
            break
        await asyncio.sleep(0.01)
    assert alive() <= before


def test_sync_callers_from_many_threads() -> None:
    together = asyncio.Barrier(16)

    async def answer(_: object) -> ScriptedTurn:
        async with asyncio.timeout(60):
            await together.wait()  # all of them are in the engine at once
        return ScriptedTurn(text=["x"] * 20, token_seconds=0.001)

    engine = ScriptedEngine(answer)
    model = MixQuantChatModel(engine=engine)
    threads = threading.active_count()
    answers = model.batch(["go"] * 16, {"max_concurrency": 16})
    assert [answer.content for answer in answers] == ["x" * 20] * 16
    assert engine.running == 0
    assert threading.active_count() <= threads + 1, "one loop thread serves all"


class State(TypedDict):
    messages: list[AnyMessage]


def graph_of(model: MixQuantChatModel) -> Any:
    async def agent(state: State) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    inner = StateGraph(State).add_node("agent", agent).add_edge(START, "agent").add_edge("agent", END).compile()
    return StateGraph(State).add_node("inner", inner).add_edge(START, "inner").add_edge("inner", END).compile()


async def test_graph_that_is_cancelled_aborts_the_subgraph_s_turn() -> None:
    engine = engine_of(HANGS)
    graph = graph_of(MixQuantChatModel(engine=engine))
    task = asyncio.create_task(graph.ainvoke({"messages": [("human", "go")]}))
    for _ in range(200):
        if engine.running:
            break
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle(engine)
    assert (engine.running, engine.aborted) == (0, 1)


async def test_graph_streams_tokens_and_names_the_thread() -> None:
    records: list[TurnRecord] = []
    model = MixQuantChatModel(engine=ScriptedEngine(["one two", "one two"]), recorders=[records.append])
    graph = graph_of(model)
    config = {"configurable": {"thread_id": "T"}}
    given = {"messages": [("human", "go")]}
    streamed = [
        chunk.content async for _, (chunk, _) in graph.astream(given, config, stream_mode="messages", subgraphs=True)
    ]
    assert [text for text in streamed if text] == ["one", " two"]
    await graph.ainvoke(given, config)
    await model.aclose()
    assert [record.thread_id for record in records] == ["T", "T"]
    assert len({record.run_id for record in records} - {None}) == 2
