"""``mixquant bench prefill``: what reading and writing cost under each policy, engines taking turns on one GPU.

Columns:

- ``exact_default``: vLLM as it comes, BF16;
- ``exact``: BF16 with the same CUDA graph sizes as ours, the fair baseline;
- ``uniform-fp8``: vLLM's own FP8 (``quantization="fp8"``) with the same graph sizes;
- ``mixquant-fp8``: phase-aware, and ``mixquant-fp8-exact-last``: the same with the last prompt token exact;
- ``mixquant-fp8-off``: the phase-aware engine with every step exact: what takes its turns where a second engine with
  exact weights has no room, as a mixture of experts on one GPU.

Engines that fit into the GPU's memory together are alive at once (see ``prefill_plan``), each in its own process and
idle while another is measured; all of them are kept on one processor core, the fastest of the moment. Work is done in
rounds; a round runs every case on every engine before the next begins, starting with another engine each time. Within a
round ``exact`` and ``mixquant-fp8`` go back and forth, the more often the smaller a case. What is done is kept in a
state file, so that a run can be continued. Engines may also be shared among several GPUs, tensor-parallel.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill.agents import AgentRuns, run_agents
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, engines
from mixquant_agents.bench.prefill.plan import (
    CASES,
    COLUMNS,
    NESTED,
    OFF,
    OURS,
    Case,
    Group,
    both_fit,
    engine_of,
    groups,
)
from mixquant_agents.bench.prefill.report import report
from mixquant_agents.bench.prefill.state import Run, State
from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, EngineStartError

__all__ = ["run_prefill"]

Say = Callable[[str], None]


def _silent(text: str) -> None:
    """Progress that nobody reads."""


def run_prefill(
    *,
    model: str = "qwen3-8b",
    gpus: int = 1,
    memory_gib: float | None = None,
    columns: list[str] | None = None,
    rounds: int = 5,
    minutes: float | None = None,
    state_path: Path | None = None,
    agent_seconds: float = 0.0,
    agent_runs: int = 6,
    cases: list[str] | None = None,
    command: str = "",
    say: Say = _silent,
) -> dict[str, Any]:
    """Run or continue the benchmark; returns the result as the result file holds it.

    Args:
        model: the name of a shape, which gets random weights, or a model's folder.
        gpus: GPUs that each engine is shared among, tensor-parallel.
        memory_gib: GiB of each GPU that an engine may use, one engine at a time: twins of experts have what is left.
        columns: some of ``COLUMNS``, ``OFF`` and ``NESTED``; all that are needed when ``None`` or empty.
        rounds: of all cases, engines alternating within each.
        minutes: after the first engines are ready, no further round begins that would take longer.
        state_path: file of what was measured; an existing one is continued.
        agent_seconds: length of each run with 32 agents; 0 leaves them out.
        agent_runs: pairs of such runs, counting those in the state file.
        cases: some of ``CASES``; an empty list leaves the agents alone, ``None`` takes all.
        command: what the result names as the command that made it.
        say: gets each line of progress.

    Raises:
        ConfigError: fewer GPUs, no such model shape, column or case; too little memory; a state of other GPUs or
            another model.
        EngineStartError: an engine did not start.
    """
    _check_names("column", columns or [], [*COLUMNS, OFF, NESTED])
    _check_names("case", cases or [], [case.name for case in CASES])
    total_gib = _gpu_gib(gpus)
    chosen_cases = [case for case in CASES if cases is None or case.name in cases]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = _model_folder(model, folder)
        config = json.loads((path / "config.json").read_text())
        chosen_columns = list(columns or COLUMNS)
        if not columns and not both_fit(chosen_cases, config, total_gib, gpus):
            chosen_columns.append(OFF)
        planned = groups(chosen_columns, chosen_cases, config, total_gib, agent_seconds > 0, gpus)
        if memory_gib is not None and any(len(set(map(engine_of, group.columns))) > 1 for group in planned):
            raise ConfigError(
                f"--memory {memory_gib:g} is for one engine, and {', '.join(chosen_columns)} are several; choose "
                f"columns of one, for example {OURS},{OFF}"
            )
        state = State.load(state_path or folder / "state.json")
        state.take(model=model, gpus=gpus, **({} if memory_gib is None else {"memory_gib": memory_gib}))
        state.info |= {"command": command, "date": datetime.now(UTC).date().isoformat()}
        logs = (state_path.parent if state_path else folder) / "engine-logs"
        logs.mkdir(exist_ok=True)
        clock = _Clock(minutes)
        goals = _Goals(rounds, agent_seconds, agent_runs)
        for group in planned:
            if goals.reached(state, group):
                continue
            if clock.is_over():
                say(f"time is up before {', '.join(group.columns)}; continue with the same --state")
                break
            share = None if memory_gib is None else memory_gib / total_gib
            with engines(group, path, model in SHAPES, logs, say, gpus, share) as alive:
                clock.start()
                _Bench(alive, state, clock, say).measure(group, goals)
        return report(state.info, state.runs, state.agents)


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"no {kind} {unknown[0]!r}; choose among {', '.join(known)}")


def _model_folder(model: str, folder: Path) -> Path:
    """The model's folder: its own, or one below ``folder`` with the configuration of a shape."""
    path = write_model(model, folder) if model in SHAPES else Path(model)
    if not path.exists():
        raise ConfigError(f"no model folder {model!r}, and no shape of that name ({', '.join(SHAPES)})")
    return path


def _gpu_gib(gpus: int) -> float:
    """GiB of memory of one of ``gpus`` GPUs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        raise ConfigError(
            "bench prefill measures a CUDA GPU, and there is none here; on a CPU formats are emulated, which says "
            "nothing about speed. Use --predict GPU for a prediction from the roofline model"
        )
    if gpus > (count := current_platform.device_count()):
        raise ConfigError(f"--gpus {gpus}, and this machine has {count}; lower it")
    return float(current_platform.get_device_total_memory() / 2**30)


class _Clock:
    """The time that a run may take, counted from when its first engines are ready."""

    def __init__(self, minutes: float | None) -> None:
        self._minutes = minutes
        self._deadline: float | None = None

    def start(self) -> None:
        """Count from now, unless the clock already runs."""
        if self._deadline is None and self._minutes is not None:
            self._deadline = time.monotonic() + self._minutes * 60

    def is_over(self, needed_seconds: float = 0.0) -> bool:
        """Whether ``needed_seconds`` more would end after the deadline."""
        return self._deadline is not None and time.monotonic() + needed_seconds > self._deadline


@dataclass(frozen=True, slots=True)
class _Goals:
    """How much of everything is wanted."""

    rounds: int
    agent_seconds: float
    agent_runs: int

    def reached(self, state: State, group: Group) -> bool:
        """Whether the state holds all that this group of engines is to measure."""
        return self.run(state, group) is None and self.agents(state, group) is None

    def run(self, state: State, group: Group) -> Run | None:
        """The run to which rounds are still to be added, if any."""
        run = state.run_of(list(group.columns), list(group.cases)) if group.cases else None
        return run if run is not None and len(run.rounds) < self.rounds else None

    def agents(self, state: State, group: Group) -> AgentRuns | None:
        """The agents' runs to which pairs are still to be added, if any."""
        agents = state.agents_of(self.agent_seconds) if group.agents else None
        return agents if agents is not None and agents.pairs < self.agent_runs else None


class _Bench:
    """A group of engines that are alive, and what is measured on them."""

    def __init__(self, alive: dict[str, EngineProcess], state: State, clock: _Clock, say: Say) -> None:
        self._alive, self._state, self._clock, self._say = alive, state, clock, say
        self._policy = OURS

    def measure(self, group: Group, goals: _Goals) -> None:
        """All that is still missing of this group."""
        self._describe()
        run = goals.run(self._state, group)
        if run is not None:
            self._add_rounds(run, group, goals.rounds)
        agents = goals.agents(self._state, group)
        if agents is None:
            return
        try:
            self._settle()
            run_agents(self._ask, agents, goals.agent_runs, self._say, self._state.save)
        except EngineStartError as error:  # what was measured before stays worth reporting
            self._say(f"the agents could not be run: {error}")
            self._state.info["agents32_error"] = str(error)
        self._state.save()

    def _describe(self) -> None:
        """Note what the engines say of themselves."""
        import torch
        import vllm

        info = self._state.info
        status = {
            name: engine.ask(do="status", plugin=name.startswith("mixquant")) for name, engine in self._alive.items()
        }
        device = next(iter(status.values()))["device"]
        if info.get("device", device) != device:
            raise ConfigError(
                f"{self._state.path} holds a run on {info['device']}, and this is {device}; give another --state"
            )
        info |= {"device": device, "vllm": vllm.__version__, "torch": torch.__version__}
        info["engines"] = {**status, **info.get("engines", {})}

    def _settle(self) -> None:
        """Put all engines on the core that is the fastest now."""
        cores = by_speed()
        for engine in self._alive.values():
            engine.ask(do="pin", cores=cores)

    def _ask(self, column: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of the engine of ``column``, switched to its policy."""
        engine = self._alive[engine_of(column)]
        if engine_of(column) == OURS and column != self._policy:
            engine.ask(do="policy", policy=_policy_of(column))
            self._policy = column
        return engine.ask(**request)

    def _add_rounds(self, run: Run, group: Group, rounds: int) -> None:
        """Rounds until there are ``rounds``, or as many as there is time for; saved after each."""
        pair = group.pair
        cases = [case for case in group.cases if pair or not case.pair_only]
        self._warm_up(group.columns, cases, pair)
        last_seconds = 0.0
        while len(run.rounds) < rounds:
            number, began = len(run.rounds), time.monotonic()
            if self._clock.is_over(last_seconds):
                self._say(
                    f"no time for round {number + 1}, which would take {last_seconds:.0f} s; continue with the same "
                    "--state"
                )
                return
            first = number % len(group.columns)
            order = [*group.columns[first:], *group.columns[:first]]
            run.rounds.append({case.name: self._measure_case(case, order, pair) for case in cases})
            last_seconds = time.monotonic() - began
            self._state.save()
            self._say(f"round {number + 1} of {rounds} took {last_seconds:.0f} s: {', '.join(group.columns)}")

    def _warm_up(self, columns: Sequence[str], cases: Sequence[Case], pair: Sequence[str]) -> None:
        """Everything once, uncounted: first runs compile and fill caches."""
        for column in columns:
            for case in cases:
                if not case.pair_only or column in pair:
                    once = {"repeats": 1} if case.request["do"] == "prefill" else {}
                    self._ask(column, {**case.request, **once})

    def _measure_case(self, case: Case, order: Sequence[str], both: Sequence[str]) -> dict[str, list[float]]:
        """Milliseconds by column: all columns in turn, then the pair alone as often as the case says."""
        pair = [column for column in order if column in both]
        first = pair if case.pair_only else list(order)
        times: dict[str, list[float]] = {column: [] for column in first}
        for turn, columns in enumerate([first, *([pair or order] * (case.turns - 1))]):
            if turn % 2 == 0:  # a core's moods last for seconds
                self._settle()
            for column in columns:
                measured = self._ask(column, dict(case.request))["ms"]
                times[column] += measured if isinstance(measured, list) else [measured]
        return times


def _policy_of(column: str) -> dict[str, Any]:
    policy = PrecisionPolicy.of(OURS)
    if column.endswith("exact-last"):
        policy = policy.model_copy(update={"exact_last_token": True})
    if column == OFF:
        policy = policy.model_copy(update={"row_threshold": 10**9})
    return policy.model_dump(mode="json")
