"""Runs a trace on an engine and gives rows in the shape of the suites' results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from mixquant_agents import VllmEngine
from mixquant_agents.engine.base import EngineRequest, Sampling
from mixquant_workflows.runner.results import ResultFile
from mixquant_workflows.runner.trace import TraceTurn

__all__ = ["run_trace"]


async def run_trace(
    engine: VllmEngine,
    threads: Sequence[Sequence[TraceTurn]],
    name: str,
    policy: str,
    results: ResultFile,
    *,
    concurrency: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Replay ``threads``, several at once, each turn as soon as the one before it is done (tool times are not waited
    for).

    What ``results`` already holds is not run again.

    Raises:
        EngineError: the engine died.
    """
    done = results.done(name, policy)
    slots = asyncio.Semaphore(concurrency)
    await engine.start()
    emulated = engine.info.emulated
    finished = 0

    async def run_thread(number: int, thread: Sequence[TraceTurn]) -> None:
        nonlocal finished
        if str(number) not in done:
            async with slots:
                began = time.monotonic()
                turns = [
                    await _turn(engine, turn, f"trace-{policy}-{number}-{index}") for index, turn in enumerate(thread)
                ]
                for turn in turns:
                    turn["emulated"] = emulated
                seconds = time.monotonic() - began
            row = {
                "suite": name,
                "policy": policy,
                "case": str(number),
                "score": 1.0,
                "seconds": seconds,
                "turns": turns,
            }
            results.add(row)
        finished += 1
        progress(finished, len(threads))

    async with asyncio.TaskGroup() as group:
        for number, thread in enumerate(threads):
            group.create_task(run_thread(number, thread))


async def _turn(engine: VllmEngine, turn: TraceTurn, request_id: str) -> dict[str, Any]:
    """Counts and times of one turn."""
    sampling = Sampling(temperature=0, max_tokens=turn.answer_tokens, ignore_eos=True)
    request = EngineRequest(request_id=request_id, messages=(), prompt_token_ids=turn.tokens(), sampling=sampling)
    figures: dict[str, Any] = {}
    async for delta in engine.stream(request):
        if delta.counts is not None:
            figures.update(delta.counts.model_dump())
        if delta.times is not None:
            figures.update(delta.times.model_dump())
    return figures
