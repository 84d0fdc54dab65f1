"""What recording, metrics and spans together add to a turn: of the scripted engine, and of a real one."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from mixquant_agents.chat.model import MixQuantChatModel
from mixquant_agents.engine.base import Engine
from mixquant_agents.engine.scripted import ScriptedEngine
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.callbacks import TelemetryCallback
from mixquant_agents.telemetry.export.otel.spans import SpanSink
from mixquant_agents.telemetry.export.prometheus import PrometheusSink

__all__ = ["overhead_on_embedded", "overhead_on_engine", "overhead_on_scripted"]

ANSWER = "The notes name three budgets, of which the second was raised in March. "


WARM_TURNS = 50
"""Turns of each side before any is counted."""
WALL_BLOCKS, BLOCK_TURNS = 26, 60
"""Blocks that are compared by the clock, the first two of which get the sides warm, and turns of each side in one."""

Side = tuple[MixQuantChatModel, RunnableConfig]


class _Nowhere(SpanExporter):
    """Takes spans like a collector that answers at once."""

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _conversation(turns: int = 4) -> list[BaseMessage]:
    """About a thousand tokens of an agent's thread."""
    messages: list[BaseMessage] = [SystemMessage("You answer from the user's notes. " * 20)]
    for n in range(turns):
        messages += [HumanMessage(f"Question {n}: what do my notes say about the budget? " * 5), AIMessage(ANSWER * 8)]
    return [*messages, HumanMessage("And in one sentence?")]


def _recording(folder: Path) -> tuple[StoreRecorder, TelemetryCallback]:
    recorder = StoreRecorder(
        folder / "overhead.sqlite", sinks=[SpanSink(_Nowhere()), PrometheusSink(CollectorRegistry())]
    )
    recorder.check()
    return recorder, TelemetryCallback(recorder)


def overhead_on_scripted(folder: Path, *, pairs: int = 1_500) -> dict[str, Any]:
    """Microseconds per turn of the scripted engine. Turns of all sides take turns in one process, and medians of
    differences are given, so that other work on the machine falls on all sides alike.

    ``overhead_us_scripted`` is CPU time that the turn's own thread spends more with store, metrics and spans recorded:
    what a caller waits for. ``background_us_scripted`` is CPU time of the writer's thread per turn.
    ``callback_us_scripted`` is what the handler that times tools and nodes adds on top to a model call.
    ``overhead_us_scripted_wall`` is what a turn takes longer by the clock, where one follows the other without a pause:
    the writer's thread then shares Python's lock with the turns.
    """
    recorder, callback = _recording(folder)
    bare = MixQuantChatModel(engine=ScriptedEngine(lambda _: ANSWER))
    recorded = MixQuantChatModel(engine=ScriptedEngine(lambda _: ANSWER), recorders=(recorder,))
    thread = RunnableConfig(configurable={"thread_id": "overhead"})
    sides = [(bare, thread), (recorded, thread), (recorded, RunnableConfig({**thread, "callbacks": [callback]}))]
    gc.disable()
    try:
        cpu_us = asyncio.run(_cpu_times(sides, pairs))
        recorder.flush(30)
        background = recorder.writer_seconds()
        clock = asyncio.run(_wall_differences(sides[0], sides[1], recorder))
    finally:
        gc.enable()
    recorder.flush(30)
    recorder.close()
    differences = [more - less for more, less in zip(cpu_us[1], cpu_us[0], strict=True)]
    callback_us = [more - less for more, less in zip(cpu_us[2], cpu_us[1], strict=True)]
    return {
        "overhead_us_scripted": round(statistics.median(differences), 1),
        "overhead_us_scripted_ci95": [round(bound, 1) for bound in _interval(differences)],
        "overhead_us_scripted_wall": round(statistics.median(clock), 1),
        "overhead_us_scripted_wall_ci95": [round(bound, 1) for bound in _interval(clock)],
        "callback_us_scripted": round(statistics.median(callback_us), 1),
        "background_us_scripted": round(background / (2 * (pairs + WARM_TURNS)) * 1e6, 1),
        "turn_us_scripted": round(statistics.median(cpu_us[0]), 1),
        "overhead_scripted_turns": pairs,
        "overhead_scripted_dropped": recorder.dropped,
    }


async def _cpu_times(sides: Sequence[Side], pairs: int) -> list[list[float]]:
    """By side, microseconds of CPU time of this thread in each of ``pairs`` turns; the sides' order is shuffled."""
    messages = _conversation()
    times: list[list[float]] = [[] for _ in sides]
    rng = random.Random(0)  # noqa: S311 # shuffles sides
    for number in range(pairs + WARM_TURNS):
        for side in rng.sample(range(len(sides)), len(sides)):
            model, config = sides[side]
            began = time.thread_time()
            await model.ainvoke(messages, config)
            if number >= WARM_TURNS:
                times[side].append((time.thread_time() - began) * 1e6)
        if number % 50 == 0:
            gc.collect()
    return times


async def _wall_differences(bare: Side, recorded: Side, recorder: StoreRecorder) -> list[float]:
    """Mean microseconds by the clock that a recorded turn takes longer, per block; the sides change who begins."""
    messages = _conversation()
    differences = []
    for block in range(WALL_BLOCKS):
        means = {}
        for side in (recorded, bare) if block % 2 == 0 else (bare, recorded):
            model, config = side
            recorder.flush(30)
            gc.collect()
            began = time.perf_counter()
            for _ in range(BLOCK_TURNS):
                await model.ainvoke(messages, config)
            means[id(model)] = (time.perf_counter() - began) / BLOCK_TURNS * 1e6
        if block > 1:  # warm by then
            differences.append(means[id(recorded[0])] - means[id(bare[0])])
    return differences


async def overhead_on_engine(engine: Engine, folder: Path, *, pairs: int = 12, max_tokens: int = 24) -> dict[str, Any]:
    """Percent that recording adds to a turn of a real engine.

    A difference below 1 % drowns in the noise of wall times, so it is also counted: the CPU time that the recording
    side spends more in this process per turn (callbacks, recording, writer, spans, metrics), over the turn's wall
    time. That is ``overhead_percent_engine``; ``overhead_percent_engine_wall`` is the plain difference of medians,
    with a 95 % interval.
    """
    recorder, callback = _recording(folder)
    settings: dict[str, Any] = {"engine": engine, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    sides = {
        "bare": (MixQuantChatModel(**settings), RunnableConfig()),
        "full": (
            MixQuantChatModel(**settings, recorders=(recorder,)),
            RunnableConfig(callbacks=[callback], configurable={"thread_id": "overhead"}),
        ),
    }
    messages = _conversation(1)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(pairs + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            model, config = sides[name]
            began, cpu = time.perf_counter(), time.process_time()
            await model.ainvoke(messages, config)
            seconds = time.perf_counter() - began
            recorder.flush(30)
            if number:  # the first of each warms up
                wall[name].append(seconds)
                spent[name].append(time.process_time() - cpu)
    recorder.close()
    turn = statistics.median(wall["bare"])
    differences = [full - bare for full, bare in zip(wall["full"], wall["bare"], strict=True)]
    extra = statistics.median(spent["full"]) - statistics.median(spent["bare"])
    low, high = _interval(differences)
    return {
        "overhead_percent_engine": round(100 * max(0.0, extra) / turn, 3),
        "overhead_percent_engine_wall": round(100 * statistics.median(differences) / turn, 2),
        "overhead_percent_engine_wall_ci95": [round(100 * low / turn, 2), round(100 * high / turn, 2)],
        "turn_seconds_engine": round(turn, 4),
        "overhead_engine_pairs": pairs,
        "overhead_engine_dropped": recorder.dropped,
    }


async def overhead_on_embedded(folder: Path) -> dict[str, Any]:
    """:func:`overhead_on_engine` on the embedded model under ``exact``; the engine is started and closed here."""
    from mixquant_agents.config import EngineConfig, PrecisionPolicy
    from mixquant_agents.engine.vllm import VllmEngine

    config = EngineConfig(model="embedded", policy=PrecisionPolicy.of("exact"), max_num_seqs=4, max_model_len=2048)
    engine = VllmEngine(config)
    try:
        await engine.start()
        return await overhead_on_engine(engine, folder)
    finally:
        await engine.aclose()


def _interval(values: Sequence[float], draws: int = 2_000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    rng = random.Random(0)  # noqa: S311 # resampling
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
