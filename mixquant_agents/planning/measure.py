"""The same agents, and the curves of their steps, on a real engine. Prompts are token ids drawn at random; answers have
the length that the workload drew (no end token ends them)."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixquant_agents.engine.base import Engine, EngineRequest, Sampling
from mixquant_agents.planning.calibration import Calibration, Writers
from mixquant_agents.planning.simulate import EngineLimits, Outcome, TurnResult
from mixquant_agents.planning.workload import TurnDraw, Workload, session

__all__ = ["Probes", "calibrate", "measure_latency", "run_workload"]

VOCABULARY = (1000, 40_000)
"""Range that token ids are drawn from."""
_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Probes:
    """What a calibration asks of the engine.

    Attributes:
        rows: lengths of cold prompts.
        context: tokens before the warm prompts, and of the writers with a long context; 0 leaves both out.
        writers: how many write at once.
        together: prompts that come at once, of the second shortest length.
        tokens: written by each writer.
        repeats: of each prompt.
        beside_writer: lengths of prompts that come while one writes; each is read in one step.
    """

    rows: Sequence[int] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    context: int = 8192
    writers: Sequence[int] = (1, 2, 4, 8, 16, 32)
    together: int = 4
    tokens: int = 48
    repeats: int = 3
    beside_writer: Sequence[int] = (256, 512, 1024)


class _Driver:
    """Turns by token ids on an engine."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self._engine = engine
        self._draw = random.Random(f"ids:{seed}")  # noqa: S311 - prompts that mean nothing

    def ids(self, count: int) -> list[int]:
        """Token ids that no prefix cache knows."""
        return self._draw.choices(range(*VOCABULARY), k=count)

    async def turn(self, prompt: Sequence[int], answer: int) -> tuple[float, list[float], list[int], int | None]:
        """When it was asked, when each token came (``time.monotonic``), the tokens, and how many were cached."""
        request = EngineRequest(
            request_id=f"plan-{next(_names)}",
            messages=(),
            prompt_token_ids=prompt,
            sampling=Sampling(temperature=0.0, max_tokens=answer, min_tokens=answer, ignore_eos=True),
        )
        asked, stamps, tokens, cached = time.monotonic(), [], list[int](), None
        async for delta in self._engine.stream(request):
            now = time.monotonic()
            stamps += [now] * len(delta.token_ids)
            tokens += delta.token_ids
            if delta.counts is not None:
                cached = delta.counts.cached_tokens
        return asked, stamps, tokens, cached


async def run_workload(
    engine: Engine,
    workload: Workload,
    *,
    agents: int,
    seconds: float,
    warm_up: float = 0.0,
    seed: int = 0,
    turns_each: int | None = None,
) -> Outcome:
    """The sessions of :func:`~mixquant_agents.planning.simulate.simulate` on a real engine."""
    shared = _Driver(engine, -1).ids(workload.shared_tokens)
    results: list[TurnResult] = []
    begin = time.monotonic()

    async def agent(number: int) -> None:
        driver = _Driver(engine, seed * 100_000 + number)
        await asyncio.sleep(workload.ramp_seconds * number / agents)
        conversation, tokens = -1, list[int]()
        for done, draw in enumerate(session(workload, number, seed)):
            if turns_each is not None and done == turns_each:
                return
            tokens = _prompt(tokens if draw.conversation == conversation else [], shared, draw, driver)
            conversation = draw.conversation
            result = TurnResult(
                number, 0, time.monotonic() - begin, draw.prompt, draw.answer, conversation,
                tool_seconds=draw.tool_seconds,
            )  # fmt: skip
            results.append(result)
            asked, stamps, answer, cached = await driver.turn(tokens, draw.answer)
            result.asked, result.stamps = asked - begin, [stamp - begin for stamp in stamps]
            result.cached = cached or 0
            tokens = [*tokens, *answer]
            await asyncio.sleep(workload.pause(draw, time.monotonic() - asked))

    tasks = [asyncio.create_task(agent(number)) for number in range(agents)]
    _, running = await asyncio.wait(tasks, timeout=seconds)
    ended = time.monotonic() - begin
    for task in running:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return Outcome(tuple(results), warm_up, min(seconds, ended))


def _prompt(known: Sequence[int], shared: Sequence[int], draw: TurnDraw, driver: _Driver) -> list[int]:
    """The turn's prompt: what the conversation has, or the shared beginning, and new tokens."""
    beginning = known or shared
    return [*beginning, *driver.ids(draw.prompt - len(beginning))]


async def calibrate(
    engine: Engine,
    probes: Probes,
    *,
    limits: EngineLimits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Times of an idle engine, of which its step times follow.

    Args:
        limits: of the engine: as many writers with a long context as its KV cache holds, and the rows of its steps.
            ``None`` for few writers, and steps that read any prompt at once.
        say: gets a line for each curve.
    """
    driver = _Driver(engine, time.monotonic_ns())
    await driver.turn(driver.ids(max(probes.rows)), 4)  # whatever happens once, happens now
    cold: dict[int, float] = {}
    for rows in probes.rows:
        cold[rows] = await _first_token(driver, [], rows, probes.repeats)
    say("cold prompts, ms: " + ", ".join(f"{rows} {seconds * 1e3:.1f}" for rows, seconds in cold.items()))
    latency = await _latency(driver, cold, probes)
    if latency is not None:
        say(f"of which outside of the steps, ms: {latency * 1e3:.2f}")
    warm: dict[int, float] = {}
    if probes.context:
        before = driver.ids(probes.context)
        await driver.turn(before, 1)
        sizes = [rows for rows in probes.rows if rows >= probes.rows[len(probes.rows) // 2]]
        warm = {rows: await _first_token(driver, before, rows, probes.repeats) for rows in sizes}
        say("behind a context, ms: " + ", ".join(f"{rows} {seconds * 1e3:.1f}" for rows, seconds in warm.items()))
    short = 32
    decode: dict[int, float] = {}
    for writers in probes.writers:
        if limits is None or writers <= limits.max_num_seqs:
            step = await _writing(driver, [driver.ids(short) for _ in range(writers)], probes.tokens)
            decode |= {} if step is None else {writers: step}
    say("writers, ms a step: " + ", ".join(f"{count} {seconds * 1e3:.2f}" for count, seconds in decode.items()))
    own, shared = await _long_contexts(driver, probes, limits, tuple(decode)) if probes.context else (None, None)
    for writers_, whose in ((own, "of their own"), (shared, "in common")):
        if writers_ is not None:
            say(f"{writers_.count} writers with a long context {whose}, ms a step: {writers_.seconds * 1e3:.2f}")
    rows = probes.rows[1]
    prompt = await _together(driver, rows, probes.together, probes.repeats)
    more = (prompt - _between(cold, rows * probes.together)) / (probes.together - 1)
    return Calibration(
        budget=limits.max_num_batched_tokens if limits is not None else None,
        cold=tuple(cold.items()),
        warm=tuple(warm.items()),
        context=probes.context if warm else 0,
        decode=tuple(decode.items()),
        decode_context=short + probes.tokens // 2,
        own=own,
        shared=shared,
        prompt=max(0.0, more),
        latency=latency,
    )


async def _long_contexts(
    driver: _Driver, probes: Probes, limits: EngineLimits | None, counts: Sequence[int]
) -> tuple[Writers | None, Writers | None]:
    """As many writers as the KV cache holds, each behind a long context of its own, and behind one in common. ``None``
    for what could not be measured."""
    kv_tokens = limits.kv_tokens if limits is not None else 0
    max_writers = kv_tokens // (probes.context + 8 * probes.tokens)
    many = max((count for count in counts if count <= max_writers), default=min(counts))
    contexts = [driver.ids(probes.context) for _ in range(many)]
    for context in contexts:  # read one after the other, the first would have written before the last begins
        await driver.turn(context, 1)
    half = probes.tokens // 2
    step = await _writing(driver, contexts, probes.tokens)
    own = None if step is None else Writers(count=many, context=probes.context + half, seconds=step)
    if many < 2:
        return own, None
    step = await _writing(driver, [[*contexts[0], *driver.ids(1)] for _ in range(many)], probes.tokens)
    return own, None if step is None else Writers(count=many, context=probes.context, seconds=step)


async def measure_latency(engine: Engine, probes: Probes) -> float:
    """Seconds of a TTFT outside of an idle engine's steps; see :class:`MeasuredSteps`."""
    driver = _Driver(engine, time.monotonic_ns())
    longest = max(probes.beside_writer)
    cold = {rows: await _first_token(driver, [], rows, probes.repeats) for rows in probes.rows if rows <= longest}
    return await _latency(driver, cold, probes) or 0.0


async def _first_token(driver: _Driver, before: Sequence[int], rows: int, repeats: int) -> float:
    """Median seconds until the first token of ``rows`` new tokens behind ``before``."""
    times = []
    for _ in range(repeats):
        asked, stamps, _, _ = await driver.turn([*before, *driver.ids(rows)], 1)
        times.append(stamps[0] - asked)
    return statistics.median(times)


async def _latency(driver: _Driver, cold: dict[int, float], probes: Probes) -> float | None:
    """Seconds of a cold prompt's TTFT in which a writer beside it does not wait: a step that reads a prompt keeps all
    writers waiting, its way through the front end none. The median over lengths that one step reads; ``None`` where
    no writer was there in time."""
    shares = []
    for rows in probes.beside_writer:
        for _ in range(probes.repeats):
            writer = asyncio.create_task(driver.turn(driver.ids(32), probes.tokens))
            await asyncio.sleep(2 * cold[probes.rows[0]])
            asked, (came,), _, _ = await driver.turn(driver.ids(rows), 1)
            _, stamps, _, _ = await writer
            gaps = [b - a for a, b in itertools.pairwise(stamps) if asked < b and a < came]
            shares += [_between(cold, rows) - max(gaps)] if gaps else []
    return max(0.0, statistics.median(shares)) if shares else None


async def _writing(driver: _Driver, prompts: Sequence[Sequence[int]], tokens: int) -> float | None:
    """Mean seconds a step while a writer behind each of ``prompts`` writes; ``None`` where they never all write at
    once, as where a prompt takes longer to read than another writer to end."""
    for answer in (tokens, 4 * tokens):
        turns = await asyncio.gather(*(driver.turn(prompt, answer) for prompt in prompts))
        begun = max(stamps[0] for _, stamps, _, _ in turns)
        ended = min(stamps[-1] for _, stamps, _, _ in turns)
        gaps = [
            later - earlier
            for _, stamps, _, _ in turns
            for earlier, later in itertools.pairwise(stamps)
            if earlier >= begun and later <= ended
        ]
        if gaps:
            return float(np.mean(gaps))
    return None


async def _together(driver: _Driver, rows: int, prompts: int, repeats: int) -> float:
    """Median seconds until the last of several prompts, asked at once, has its first token."""
    times = []
    for _ in range(repeats):
        asked = await asyncio.gather(*(driver.turn(driver.ids(rows), 1) for _ in range(prompts)))
        times.append(max(stamps[0] for _, stamps, _, _ in asked) - min(turn[0] for turn in asked))
    return statistics.median(times)


def _between(curve: dict[int, float], at: int) -> float:
    return float(np.interp(at, list(curve), list(curve.values())))
