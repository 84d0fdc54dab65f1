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
from mixquant_agents.planning.steps import Curve
from mixquant_agents.planning.workload import TurnDraw, Workload, session
from mixquant_agents.records import TurnTimes

__all__ = ["Probes", "calibrate", "measure_latency", "run_workload"]

VOCABULARY = (1000, 40_000)
"""Range that token ids are drawn from."""
TWO = 2
"""Tokens of an answer of which the first is timed: a turn's last token comes with its counts, for which an engine that
quantizes is asked between two steps."""
SHORT = 32
"""Tokens of a prompt of which nothing is asked but that somebody writes behind it."""
FEW = 16
"""Tokens of a writer beside a prompt that is read: some before it, and some behind. More where it ended too early."""
USUAL = 16
"""Most writers beside a prompt that is read, in a calibration."""
_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Probes:
    """What a calibration asks of the engine.

    Attributes:
        rows: lengths of cold prompts.
        context: tokens before the warm prompts, and of the writers with a long context; 0 leaves both out.
        writers: how many write at once.
        together: prompts that one step reads together, of the second shortest length.
        tokens: written by each writer, at least: half of them at a steady pace.
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


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn.

    Attributes:
        asked: when it was asked (``time.monotonic``).
        stamps: when each token came.
        tokens: the answer.
        cached: tokens of the prompt that were cached; ``None`` where the engine does not say.
        times: the engine's own times of it.
    """

    asked: float
    stamps: list[float]
    tokens: list[int]
    cached: int | None
    times: TurnTimes | None

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.asked


class _Driver:
    """Turns by token ids on an engine."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self._engine = engine
        self._draw = random.Random(f"ids:{seed}")  # noqa: S311 - prompts that mean nothing

    def ids(self, count: int) -> list[int]:
        """Token ids that no prefix cache knows."""
        return self._draw.choices(range(*VOCABULARY), k=count)

    async def turn(self, prompt: Sequence[int], answer: int, begun: asyncio.Event | None = None) -> _Turn:
        """Ask, and take down when each token came. ``begun`` is set with the third one, or at the end."""
        request = EngineRequest(
            request_id=f"plan-{next(_names)}",
            messages=(),
            prompt_token_ids=prompt,
            sampling=Sampling(temperature=0.0, max_tokens=answer, min_tokens=answer, ignore_eos=True),
        )
        asked, stamps, tokens, cached, times = time.monotonic(), list[float](), list[int](), None, None
        async for delta in self._engine.stream(request):
            now = time.monotonic()
            stamps += [now] * len(delta.token_ids)
            tokens += delta.token_ids
            if delta.counts is not None:
                cached = delta.counts.cached_tokens
            times = delta.times if delta.times is not None else times
            if begun is not None and len(tokens) >= 3:
                begun.set()
        if begun is not None:
            begun.set()
        return _Turn(asked, stamps, tokens, cached, times)


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
            turn = await driver.turn(tokens, draw.answer)
            result.asked, result.stamps = turn.asked - begin, [stamp - begin for stamp in turn.stamps]
            result.cached = turn.cached or 0
            tokens = [*tokens, *turn.tokens]
            await asyncio.sleep(workload.pause(draw, time.monotonic() - turn.asked))

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
    outside = _Outside()
    cold: dict[int, float] = {}
    for rows in probes.rows:
        cold[rows] = await _first_token(driver, [], rows, probes.repeats, outside)
    say("cold prompts, ms: " + ", ".join(f"{rows} {seconds * 1e3:.1f}" for rows, seconds in cold.items()))
    beside, held = await _beside(driver, cold, probes, limits)
    say("beside writers their steps take longer by, ms: " + ", ".join(f"{n} {s * 1e3:.1f}" for n, s in beside.items()))
    say(f"a writer's token before such a step, ms: {held * 1e3:.2f}")
    warm: dict[int, float] = {}
    if probes.context:
        before = driver.ids(probes.context)
        await driver.turn(before, 1)
        sizes = [rows for rows in probes.rows if rows >= probes.rows[len(probes.rows) // 2]]
        warm = {rows: await _first_token(driver, before, rows, probes.repeats, outside) for rows in sizes}
        say("behind a context, ms: " + ", ".join(f"{rows} {seconds * 1e3:.1f}" for rows, seconds in warm.items()))
    decode: dict[int, Writers] = {}
    for count in probes.writers:
        if limits is None or count <= limits.max_num_seqs:
            step = await _writing(driver, [driver.ids(SHORT) for _ in range(count)], probes.tokens)
            decode |= {} if step is None else {count: step}
    say("writers, ms a step: " + ", ".join(f"{count} {step.seconds * 1e3:.2f}" for count, step in decode.items()))
    own, shared = await _long_contexts(driver, probes, limits, tuple(decode)) if probes.context else (None, None)
    for writers_, whose in ((own, "of their own"), (shared, "in common")):
        if writers_ is not None:
            say(f"{writers_.count} writers with a long context {whose}, ms a step: {writers_.seconds * 1e3:.2f}")
    return Calibration(
        budget=limits.max_num_batched_tokens if limits is not None else None,
        cold=tuple(cold.items()),
        warm=tuple(warm.items()),
        context=probes.context if warm else 0,
        before=outside.before(),
        behind=outside.behind(),
        decode=tuple((count, step.seconds) for count, step in decode.items()),
        decode_context=round(statistics.mean(step.context for step in decode.values())),
        own=own,
        shared=shared,
        prompt=await _further_prompt(driver, probes, limits),
        latency=_latency(beside),
        beside=tuple(beside.items()),
        held=held,
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
    own = await _writing(driver, contexts, probes.tokens)
    if many < 2:
        return own, None
    shared = await _writing(driver, [[*contexts[0], *driver.ids(1)] for _ in range(many)], probes.tokens)
    return own, None if shared is None else shared.model_copy(update={"context": probes.context})


async def measure_latency(engine: Engine, probes: Probes) -> float:
    """Seconds of a TTFT outside of an idle engine's steps; see :class:`MeasuredSteps`."""
    driver = _Driver(engine, time.monotonic_ns())
    longest = max(probes.beside_writer)
    lengths = [rows for rows in probes.rows if rows <= longest]
    cold = {rows: await _first_token(driver, [], rows, probes.repeats, _Outside()) for rows in lengths}
    beside, _ = await _beside(driver, cold, probes, None)
    return _latency(beside) or 0.0


class _Outside:
    """What of prompts' times to first token is no step, by the engine's own clock."""

    def __init__(self) -> None:
        self._before: dict[int, list[float]] = {}
        self._behind: dict[int, list[float]] = {}

    def add(self, tokens: int, times: TurnTimes | None) -> None:
        """A prompt of so many tokens."""
        if times is not None and times.queue_seconds is not None and times.delivery_seconds is not None:
            self._before.setdefault(tokens, []).append(times.queue_seconds)
            self._behind.setdefault(tokens, []).append(times.delivery_seconds)

    def before(self) -> Curve:
        """Tokens of a prompt → median seconds until the engine begins it."""
        return self._medians(self._before)

    def behind(self) -> Curve:
        """Tokens of a prompt → median seconds from its first token to the caller."""
        return self._medians(self._behind)

    @staticmethod
    def _medians(of: dict[int, list[float]]) -> Curve:
        return tuple((tokens, statistics.median(seconds)) for tokens, seconds in sorted(of.items()))


async def _first_token(driver: _Driver, before: Sequence[int], rows: int, repeats: int, outside: _Outside) -> float:
    """Median seconds until the first token of ``rows`` new tokens behind ``before``."""
    times = []
    for _ in range(repeats):
        turn = await driver.turn([*before, *driver.ids(rows)], TWO)
        times.append(turn.first)
        outside.add(len(before) + rows, turn.times)
    return statistics.median(times)


async def _beside(
    driver: _Driver, cold: dict[int, float], probes: Probes, limits: EngineLimits | None
) -> tuple[dict[int, float], float]:
    """Writers → how much longer than a cold prompt's TTFT the step takes that reads one beside them: the median over
    lengths that one step reads. Of one writer, and of as many as are usual; left out where none was there in time.
    And the median time between the two tokens of one writer before that step."""
    most = max((count for count in probes.writers if count <= USUAL), default=1)
    result, held = {}, list[float]()
    for count in sorted({1, most if limits is None else min(most, limits.max_num_seqs - 1)}):
        more = []
        for rows in probes.beside_writer:
            for _ in range(probes.repeats):
                around = await _gaps_around(driver, count, rows)
                if around:
                    more.append(statistics.median(step for _, step in around) - _between(cold, rows))
                    held += [before for before, _ in around] if count == 1 else []
        if more:
            result[count] = statistics.median(more)
    return result, statistics.median(held) if held else 0.0


async def _gaps_around(driver: _Driver, count: int, rows: int) -> list[tuple[float, float]]:
    """Of each of so many writers what :func:`_around` says of a cold prompt of ``rows`` tokens. Where the prompt's way
    to the engine takes as long as many steps, they write longer."""
    for tokens in (FEW, 4 * FEW, 16 * FEW):
        read, writers = await _reading(driver, count, rows, tokens)
        around = [gaps for gaps in (_around(writer, read) for writer in writers) if gaps is not None]
        if around:
            return around
    return []


async def _reading(driver: _Driver, count: int, rows: int, tokens: int) -> tuple[_Turn, list[_Turn]]:
    """A cold prompt that comes while so many write, and those."""
    begun = [asyncio.Event() for _ in range(count)]
    writers = [asyncio.create_task(driver.turn(driver.ids(SHORT), tokens, event)) for event in begun]
    await asyncio.gather(*(event.wait() for event in begun))
    return await driver.turn(driver.ids(rows), TWO), await asyncio.gather(*writers)


def _around(writer: _Turn, read: _Turn) -> tuple[float, float] | None:
    """Seconds between the two tokens of a writer before a step that read a prompt beside it, and of that step; ``None``
    where it did not write before and after.

    A step whose tokens come late, because the engine prepared the next one first, took no longer: what its token was
    late is part of the step behind it.
    """
    stamps, came = writer.stamps, read.asked + read.first
    at = min(range(len(stamps)), key=lambda at: abs(stamps[at] - came))
    if at < 2 or at == len(stamps) - 1:
        return None
    usual = statistics.median(later - earlier for earlier, later in itertools.pairwise(stamps))
    return stamps[at - 1] - stamps[at - 2], max(0.0, stamps[at] - stamps[at - 2] - usual)


def _latency(beside: dict[int, float]) -> float | None:
    """Seconds of a cold prompt's TTFT in which a writer beside it does not wait: a step that reads a prompt keeps all
    writers waiting, its way through the front end none."""
    return max(0.0, -beside[1]) if 1 in beside else None


async def _writing(driver: _Driver, prompts: Sequence[Sequence[int]], tokens: int) -> Writers | None:
    """Mean seconds a step while a writer behind each of ``prompts``, all of one length, writes; ``None`` where they
    never all write at once, as where a prompt takes longer to read than another writer to end.

    While the front end was busy with prompts and first texts, the first ones wrote already. What it owes then comes
    faster than steps are: gaps count once that is behind.
    """
    for answer in (2 * tokens, 4 * tokens, 8 * tokens):
        turns = await asyncio.gather(*(driver.turn(prompt, answer) for prompt in prompts))
        begun = max(turn.stamps[0] for turn in turns)
        ended = min(turn.stamps[-1] for turn in turns)
        steady = 2 * begun - min(turn.asked for turn in turns)  # it owes no more than came since they were asked
        gaps = [
            (later - earlier, at)
            for turn in turns
            for at, (earlier, later) in enumerate(itertools.pairwise(turn.stamps), 1)
            if earlier >= steady and later <= ended
        ]
        if len(gaps) >= len(prompts) * tokens // 2:
            seconds, written = np.mean(gaps, axis=0)
            return Writers(count=len(prompts), context=len(prompts[0]) + round(written), seconds=seconds)
    return None


async def _further_prompt(driver: _Driver, probes: Probes, limits: EngineLimits | None) -> float:
    """Seconds of each prompt of a step after the first: what several take longer than one of their length. They come
    while long ones are read, so that one step has them all; of an idle engine, the first would have one of its own.
    """
    in_one_step = limits is None or max(probes.rows) <= limits.max_num_batched_tokens
    ahead = 1 + (limits.lookahead if limits is not None and in_one_step else 0)
    rows, count = probes.rows[1], probes.together

    async def behind_a_prompt(*lengths: int) -> float:
        times = []
        for _ in range(probes.repeats):
            prompts = [driver.ids(length) for length in (*[max(probes.rows)] * ahead, *lengths)]
            turns = await asyncio.gather(*(driver.turn(prompt, TWO) for prompt in prompts))
            times.append(max(turn.asked + turn.first for turn in turns[ahead:]) - turns[0].asked)
        return statistics.median(times)

    several, one = await behind_a_prompt(*[rows] * count), await behind_a_prompt(rows * count)
    return max(0.0, several - one) / (count - 1)


def _between(curve: dict[int, float], at: int) -> float:
    return float(np.interp(at, list(curve), list(curve.values())))
