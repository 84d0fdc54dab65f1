"""Agents on engines, step by step: a small discrete-event simulation with vLLM's scheduling.

Each step takes one token of every writer, then chunks of running prompts, then waiting prompts in their order, within
the budget of rows; a prompt's cached beginning is skipped in whole blocks. An engine's front end does one thing at a
time: while it takes a prompt, or makes the text of a first token, no other token is handed on. Conversations stay in
the cache until their place is needed, the longest unused first.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast

from pydantic import Field

from mixquant_agents.planning.steps import StepTimes
from mixquant_agents.planning.workload import TurnDraw, Workload, session
from mixquant_agents.records import percentile
from mixquant_agents.validation import FrozenConfig

__all__ = ["EngineLimits", "Outcome", "Routing", "TurnResult", "simulate"]

SHARES = (5, 25, 50, 75, 85, 90, 93, 95, 97, 99)
"""Percentiles of a distribution."""
Routing = Literal["session", "random"]
Count = Annotated[int, Field(ge=1)]


class EngineLimits(FrozenConfig):
    """What one engine can hold.

    Attributes:
        kv_tokens: places of the KV cache.
        max_num_seqs: most turns running at once.
        max_num_batched_tokens: most rows of a step.
        block: tokens of a block of the prefix cache.
        lookahead: steps that are scheduled ahead of the one that runs (vLLM's asynchronous scheduling: 1).
    """

    kv_tokens: Count
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count = 8192
    block: Count = 16
    lookahead: Annotated[int, Field(ge=0, le=1)] = 0


@dataclass(slots=True)
class TurnResult:
    """One turn: when it was asked (seconds), what it read, and when its tokens came."""

    agent: int
    engine: int
    asked: float
    prompt: int
    answer: int
    conversation: int = 0
    cached: int = 0
    tool_seconds: float = 0.0
    stamps: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.asked

    @property
    def gaps(self) -> Iterator[float]:
        """Seconds between tokens."""
        return (later - earlier for earlier, later in itertools.pairwise(self.stamps))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run, simulated or real: the turns asked from ``since`` on, seconds ``until`` the end."""

    turns: tuple[TurnResult, ...]
    since: float
    until: float

    def complete(self) -> list[TurnResult]:
        """Turns whose whole answer came before the end."""
        return [turn for turn in self.turns if len(turn.stamps) >= turn.answer]

    def summary(self) -> dict[str, float | int | None]:
        """Percentiles in milliseconds, tokens per second, and the share of prompt tokens that were cached; of complete
        turns alone, for a real run that ends has no others."""
        complete = self.complete()
        counted = [turn for turn in complete if turn.asked >= self.since]
        first = [turn.ttft for turn in counted]
        gaps = [gap for turn in counted for gap in turn.gaps]
        written = sum(self.since <= stamp <= self.until for turn in complete for stamp in turn.stamps)
        read = sum(turn.prompt for turn in counted)
        length = self.until - self.since
        return {
            "turns": len(counted),
            "ttft_p50_ms": _ms(first, 0.5),
            "ttft_p95_ms": _ms(first, 0.95),
            "itl_p50_ms": _ms(gaps, 0.5),
            "itl_p95_ms": _ms(gaps, 0.95),
            "tokens_per_s": round(written / length, 2) if length > 0 else None,
            "turns_per_s": round(len(counted) / length, 4) if length > 0 else None,
            "cached_share": round(sum(turn.cached for turn in counted) / read, 4) if read else None,
        }

    def distribution(self) -> dict[str, dict[str, float | None]]:
        """Figure → percentile → milliseconds, of the turns that :meth:`summary` counts.

        Whether a percentile stands at a cliff, and which gaps are long, shows only beside the others.
        """
        counted = [turn for turn in self.complete() if turn.asked >= self.since]
        values = {"ttft_ms": [turn.ttft for turn in counted], "itl_ms": [gap for turn in counted for gap in turn.gaps]}
        return {name: {f"p{share}": _ms(of, share / 100) for share in SHARES} for name, of in values.items()}


def _ms(values: list[float], share: float) -> float | None:
    value = percentile(values, share)
    return None if value is None else round(value * 1000, 3)


@dataclass(slots=True)
class _Running:
    """A turn on an engine."""

    result: TurnResult
    key: tuple[int, int]
    computed: int = 0
    """Tokens of the prompt whose KV is there."""
    shared: int = 0
    arrived: float = 0.0
    """When the engine has it."""

    @property
    def context(self) -> int:
        """Tokens whose KV is there."""
        return self.computed + max(0, len(self.result.stamps) - 1)

    @property
    def reading(self) -> bool:
        return self.computed < self.result.prompt

    @property
    def through(self) -> bool:
        return len(self.result.stamps) >= self.result.answer


class _Engine:
    """One engine: its queue, what runs, and what is cached."""

    def __init__(self, limits: EngineLimits, steps: StepTimes, shared_tokens: int) -> None:
        self._limits, self._steps = limits, steps
        self._shared = shared_tokens - shared_tokens % limits.block
        self._shared_known = 0
        """Tokens of the shared beginning that are in the cache: a chunk is known to others as soon as it is read."""
        self.waiting: deque[_Running] = deque()
        self.running: list[_Running] = []
        self._idle: OrderedDict[tuple[int, int], int] = OrderedDict()
        """Conversation → tokens in the cache, without the shared beginning; longest unused first."""
        self.busy = False
        self._front_free = 0.0
        """When the front end is through with what it does."""

    def taken(self, prompt: int, now: float) -> float:
        """When a prompt that is asked now has passed the front end."""
        self._front_free = max(now, self._front_free) + self._steps.front_end(prompt)[0]
        return self._front_free + self._steps.way

    def handed_on(self, now: float, readers: Iterable[_Running]) -> float:
        """When the tokens that come now, of a step with these readers, are handed on: behind their first texts."""
        texts = sum(self._steps.front_end(turn.result.prompt)[1] for turn in readers if len(turn.result.stamps) == 1)
        self._front_free = max(now, self._front_free) + texts
        return self._front_free

    def used(self) -> int:
        """Places of the KV cache that running turns hold."""
        return self._shared_known + sum(turn.context - turn.shared for turn in self.running)

    def _next_tokens(self, budget: int) -> int:
        """Tokens that the running turns' next step adds to the cache."""
        return min(budget, sum(turn.result.prompt - turn.computed if turn.reading else 1 for turn in self.running))

    def _fits(self, tokens: int) -> bool:
        """Whether there would be room for ``tokens`` more, with every idle conversation forgotten."""
        return self.used() + tokens <= self._limits.kv_tokens

    def _make_room(self, tokens: int) -> None:
        """Forget as much as ``tokens`` more need: the end of the conversation that is longest unused first."""
        missing = self.used() + sum(self._idle.values()) + tokens - self._limits.kv_tokens
        while missing > 0 and self._idle:
            key, held = next(iter(self._idle.items()))
            missing -= held
            left = -missing - -missing % self._limits.block
            if left > 0:
                self._idle[key] = left
            else:
                del self._idle[key]

    def _cached(self, turn: _Running) -> tuple[int, int]:
        """Tokens of the prompt that are cached, and those of them that all agents share."""
        max_cached = (turn.result.prompt - 1) // self._limits.block * self._limits.block
        own = self._idle.get(turn.key, 0)
        known = min(self._shared + own if own else self._shared_known, max_cached)
        known -= known % self._limits.block
        return known, min(self._shared, known)

    def step(self, until: float) -> tuple[float, list[_Running], list[_Running]] | None:
        """Plan one step with the turns asked before ``until``: its seconds, its readers and its writers."""
        budget = self._limits.max_num_batched_tokens
        prompts: list[tuple[int, int]] = []
        readers: list[_Running] = []
        writers = [turn for turn in self.running if not turn.reading]
        while len(self.running) > 1 and not self._fits(self._next_tokens(budget)):
            victim = self.running.pop()  # the last to come is put aside, and read again
            victim.computed, victim.shared = 0, 0
            self.waiting.appendleft(victim)
            writers = [turn for turn in writers if turn is not victim]
        self._make_room(len(writers))
        budget -= len(writers)
        contexts = [turn.context for turn in writers]
        for turn in (turn for turn in self.running if turn.reading):
            budget = self._read(turn, budget, prompts, readers)
        while self.waiting and budget > 0 and len(self.running) < self._limits.max_num_seqs:
            turn = self.waiting[0]
            if turn.arrived > until:
                break
            cached, shared = self._cached(turn)
            if not self._fits(turn.result.prompt - shared) and self.running:
                break
            self.waiting.popleft()
            self._idle.pop(turn.key, None)
            turn.computed, turn.shared = cached, shared
            if not turn.result.stamps:
                turn.result.cached = cached
            self.running.append(turn)
            budget = self._read(turn, budget, prompts, readers)
        if not prompts and not writers:
            return None
        known = [turn.shared for turn in writers]
        return self._steps.seconds(prompts, contexts, sum(known) - max(known, default=0)), readers, writers

    def _read(self, turn: _Running, budget: int, prompts: list[tuple[int, int]], readers: list[_Running]) -> int:
        rows = min(budget, turn.result.prompt - turn.computed)
        if rows > 0:
            self._make_room(rows)
            prompts.append((rows, turn.computed))
            readers.append(turn)
            turn.computed += rows
        return budget - max(0, rows)

    def finish(self, now: float, readers: Iterable[_Running], writers: Iterable[_Running]) -> list[_Running]:
        """The step ended: the turns that have a new token. Those that are through leave, and stay in the cache."""
        written = [*writers]
        for turn in readers:
            turn.shared = min(self._shared, turn.computed)
            self._shared_known = max(self._shared_known, turn.shared)
            if not turn.reading and not turn.result.stamps:
                written.append(turn)
        for turn in written:
            turn.result.stamps.append(now)
        for turn in [turn for turn in self.running if turn.through]:
            self.running.remove(turn)
            own = turn.context - turn.shared
            self._idle[turn.key] = own - own % self._limits.block
            self._idle.move_to_end(turn.key)
        return written


class _Agent:
    def __init__(self, number: int, workload: Workload, seed: int) -> None:
        self.number = number
        self.draws = session(workload, number, seed)
        self.draw: TurnDraw = next(self.draws)
        self.asked = 0.0


def simulate(
    workload: Workload,
    steps: StepTimes,
    limits: EngineLimits,
    *,
    agents: int,
    engines: int = 1,
    seconds: float,
    warm_up: float = 0.0,
    routing: Routing = "session",
    seed: int = 0,
    turns_each: int | None = None,
) -> Outcome:
    """Run ``agents`` on ``engines`` for so many seconds of simulated time.

    Args:
        warm_up: seconds at the beginning that are not counted.
        routing: ``"session"`` keeps an agent on its engine; ``"random"`` sends each turn anywhere.
        turns_each: turns of each agent; ``None`` for as many as fit.
    """
    dice = random.Random(f"routes:{seed}")  # noqa: S311 - a simulation
    fleet = [_Engine(limits, steps, workload.shared_tokens) for _ in range(engines)]
    people = [_Agent(number, workload, seed) for number in range(agents)]
    results: list[TurnResult] = []
    left = [turns_each if turns_each is not None else -1] * agents
    events: list[tuple[float, int, str, object]] = []
    order = itertools.count()
    now = 0.0

    def at(when: float, kind: str, what: object) -> None:
        heapq.heappush(events, (when, next(order), kind, what))

    def begin(number: int, until: float, launch: float = 0.0) -> bool:
        """The engine's next step; whether it reads prompts."""
        engine = fleet[number]
        planned = engine.step(until)
        engine.busy = planned is not None
        if planned is not None:
            took, readers, writers = planned
            at(now + launch + took, "step", (number, now, readers, writers))
            return bool(readers)
        if engine.waiting:  # too new for a step that was scheduled ahead
            begin(number, now)
        return False

    def arrive(turn: _Running) -> None:
        engine = fleet[turn.result.engine]
        engine.waiting.append(turn)
        if not engine.busy:
            begin(turn.result.engine, now, steps.launch)

    for agent in people:
        at(workload.ramp_seconds * agent.number / agents, "ask", agent)
    while events:
        now, _, kind, what = heapq.heappop(events)
        if now > seconds:
            break
        if kind == "ask":
            asking = cast("_Agent", what)
            draw = asking.draw
            number = asking.number % engines if routing == "session" else dice.randrange(engines)
            result = TurnResult(
                asking.number, number, now, draw.prompt, draw.answer, draw.conversation, tool_seconds=draw.tool_seconds
            )
            results.append(result)
            asking.asked = now
            arriving = _Running(
                result, (asking.number, draw.conversation), arrived=fleet[number].taken(draw.prompt, now)
            )
            if arriving.arrived > now:
                at(arriving.arrived, "arrive", arriving)
            else:
                arrive(arriving)
            continue
        if kind == "arrive":
            arrive(cast("_Running", what))
            continue
        number, started, readers, writers = cast("tuple[int, float, list[_Running], list[_Running]]", what)
        written = fleet[number].finish(now, readers, writers)
        reads = begin(number, started if limits.lookahead else now)
        came = max(now, started + steps.held) if limits.lookahead and reads else now
        handed_on = fleet[number].handed_on(came, [turn for turn in written if turn in readers])
        for turn in written:
            turn.result.stamps[-1] = handed_on
            if not turn.through:
                continue
            agent = people[turn.result.agent]
            left[agent.number] -= 1
            if left[agent.number] == 0:
                continue
            wait = workload.pause(agent.draw, handed_on - agent.asked)
            agent.draw = next(agent.draws)
            at(handed_on + wait, "ask", agent)
    return Outcome(tuple(results), warm_up, min(now, seconds))
