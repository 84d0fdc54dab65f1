"""How many engines a number of agents needs: the most agents that one engine serves within the objectives, and as many
engines as that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from mixquant_agents.planning.simulate import EngineLimits, Routing, simulate
from mixquant_agents.planning.steps import StepTimes
from mixquant_agents.planning.workload import Workload
from mixquant_agents.validation import FrozenConfig

__all__ = ["Objectives", "Plan", "plan"]

MOST_AGENTS = 65_536
"""Of one engine; nobody gets there."""
SECONDS, WARM_UP = 600.0, 240.0
"""Of each simulated run: long enough for contexts to grow, tools to return, and caches to fill."""
FLEET = 4
"""Engines that are simulated together where turns are sent anywhere: more behave alike."""


class Objectives(FrozenConfig):
    """What agents must get (service-level objectives), at the 95th percentile.

    Attributes:
        ttft_ms: milliseconds to the first token.
        itl_ms: milliseconds between tokens.
    """

    ttft_ms: Annotated[float, Field(gt=0)] = 2000.0
    itl_ms: Annotated[float, Field(gt=0)] = 100.0

    def met(self, summary: Mapping[str, Any]) -> bool:
        """Whether a run was within them, and turned anything over."""
        first, gaps = summary["ttft_p95_ms"], summary["itl_p95_ms"]
        return first is not None and first <= self.ttft_ms and (gaps is None or gaps <= self.itl_ms)


@dataclass(frozen=True, slots=True)
class Plan:
    """What so many agents need.

    Attributes:
        agents_per_engine: most that one engine serves within the objectives; 0 where not even one agent is served so.
        engines: how many; ``None`` where no number is enough.
        expected: figures of an engine under its share of the agents.
        kv_gib: GiB of KV cache that all engines have; ``None`` where nobody said what a token takes.
    """

    agents: int
    agents_per_engine: int
    engines: int | None
    gpus: int | None
    expected: dict[str, Any]
    kv_gib: float | None


def plan(
    workload: Workload,
    steps: StepTimes,
    limits: EngineLimits,
    objectives: Objectives,
    *,
    agents: int,
    gpus_per_engine: int = 1,
    kv_bytes_per_token: int | None = None,
    routing: Routing = "session",
    spare: float = 0.0,
    seconds: float = SECONDS,
    warm_up: float = WARM_UP,
    seed: int = 0,
    tried: dict[int, dict[str, Any]] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan for ``agents``.

    Args:
        kv_bytes_per_token: bytes of KV cache a token takes; ``None`` leaves the memory out.
        routing: as in :func:`simulate`. With ``"random"`` a turn meets its cached conversation on one engine of many:
            several engines are simulated together.
        spare: share of further engines, for failures and for peaks.
        tried: figures of runs so far, by agents of one engine; for several plans of the same engines.
    """
    tried = {} if tried is None else tried

    def figures(number: int) -> dict[str, Any]:
        if number not in tried:
            engines = FLEET if routing == "random" else 1
            run = simulate(
                workload, steps, limits, agents=number * engines, engines=engines, seconds=seconds, warm_up=warm_up,
                routing=routing, seed=seed,
            )  # fmt: skip
            tried[number] = run.summary()
            say(f"{number} agents an engine: {_words(tried[number], objectives)}")
        return tried[number]

    per_engine = _largest(lambda number: objectives.met(figures(number)), min(agents, MOST_AGENTS))
    if per_engine == 0:
        return Plan(agents, 0, None, None, figures(1), None)
    engines = math.ceil(agents / per_engine * (1 + spare))
    share = math.ceil(agents / engines)
    memory = None if kv_bytes_per_token is None else engines * limits.kv_tokens * kv_bytes_per_token / 2**30
    return Plan(agents, per_engine, engines, engines * gpus_per_engine, figures(share), memory)


def _words(figures: Mapping[str, Any], objectives: Objectives) -> str:
    """A run's figures in one line."""
    ttft, itl = figures["ttft_p95_ms"], figures["itl_p95_ms"]
    if ttft is None:
        return "no turn ended in the simulated time"
    gaps = "" if itl is None else f", of ITL {itl:.1f} ms"
    return f"p95 of TTFT {ttft:,.0f} ms{gaps}: {'fits' if objectives.met(figures) else 'too many'}"


def _largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that holds, where every smaller one does; 0 for none. Doubles, then halves."""
    if not holds(1):
        return 0
    good = 1
    while good < limit and holds(min(2 * good, limit)):
        good = min(2 * good, limit)
    bad = min(2 * good, limit) if good < limit else limit + 1
    while bad - good > max(1, good // 32):  # an agent more or less is within the noise of a run
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good
