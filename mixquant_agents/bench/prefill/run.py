"""``mixquant bench prefill``: what reading and writing cost under each policy, engines taking turns on one GPU.

Columns:

- ``exact_default``: vLLM as it comes, BF16;
- ``exact``: BF16 with the same CUDA graph sizes as ours, the fair baseline;
- ``uniform-fp8``: vLLM's own FP8 (``quantization="fp8"``) with the same graph sizes;
- ``mixquant-fp8``: phase-aware, and ``mixquant-fp8-exact-last``: the same with the last prompt token exact.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill.agents import AgentRuns, run_agents
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, engines
from mixquant_agents.bench.prefill.plan import CASES, COLUMNS, OURS, PAIR, Case, Group, engine_of, groups
from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, EngineStartError

__all__ = ["Run", "State", "run_prefill"]


@dataclass
class Run:
    """What one group of engines has shown: milliseconds per round, case and column."""

    columns: list[str]
    turns: dict[str, int]
    rounds: list[dict[str, dict[str, list[float]]]] = field(default_factory=list)


@dataclass
class State:
    """What has been measured; kept in a file after every round."""

    path: Path
    runs: list[Run] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    agents: AgentRuns | None = None

    @classmethod
    def load(cls, path: Path) -> State:
        """From the file, or empty."""
        if not path.exists():
            return cls(path)
        stored = json.loads(path.read_text())
        agents = stored.get("agents")
        runs = [Run(**run) for run in stored["runs"]]
        return cls(path, runs, stored["info"], agents and AgentRuns(**agents))

    def take(self, **what: Any) -> None:
        """What is about to be measured.

        Raises:
            ConfigError: the file holds measurements of something else.
        """
        held = {"gpus": 1, **self.info} if self.info else what  # files from before --gpus say nothing of it
        for name, value in what.items():
            if held.get(name, value) != value:
                raise ConfigError(
                    f"{self.path} holds a run with {name} {held[name]!r}, not {value!r}; give another --state"
                )
        self.info |= what

    def run_of(self, columns: list[str], cases: list[Case]) -> Run:
        """The run of these columns and cases, begun if it was not."""
        turns = {case.name: case.turns for case in cases}
        for run in self.runs:
            if (run.columns, run.turns) == (columns, turns):
                return run
        self.runs.append(Run(columns, turns))
        return self.runs[-1]

    def agents_of(self, seconds: float) -> AgentRuns:
        """The agents' runs of this length, begun if they were not.

        Raises:
            ConfigError: those at hand are of another length.
        """
        if self.agents is None:
            self.agents = AgentRuns(seconds)
        if self.agents.seconds != seconds:
            raise ConfigError(
                f"{self.path} holds agents' runs of {self.agents.seconds:g} s, not {seconds:g}; give another --state"
            )
        return self.agents

    def save(self) -> None:
        """Write the file; never half of it."""
        scratch = self.path.with_suffix(".part")
        stored = {"info": self.info, "runs": [asdict(run) for run in self.runs]}
        if self.agents is not None:
            stored["agents"] = asdict(self.agents)
        scratch.write_text(json.dumps(stored))
        scratch.replace(self.path)


def _policy_of(column: str) -> dict[str, Any]:
    policy = PrecisionPolicy.of(OURS)
    if column.endswith("exact-last"):
        policy = policy.model_copy(update={"exact_last_token": True})
    return policy.model_dump(mode="json")


class _Bench:
    def __init__(self, alive: dict[str, EngineProcess]) -> None:
        self._alive = alive
        self._policy = OURS

    def settle(self) -> None:
        """Put all engines on the core that is the fastest now."""
        cores = by_speed()
        for engine in self._alive.values():
            engine.ask(do="pin", cores=cores)

    def ask(self, column: str, request: dict[str, Any]) -> dict[str, Any]:
        """Of the engine of ``column``, switched to its policy."""
        engine = self._alive[engine_of(column)]
        if engine_of(column) == OURS and column != self._policy:
            engine.ask(do="policy", policy=_policy_of(column))
            self._policy = column
        return engine.ask(**request)


def run_prefill(
    *,
    model: str = "qwen3-8b",
    gpus: int = 1,
    columns: list[str] | None = None,
    rounds: int = 5,
    minutes: float | None = None,
    state_path: Path | None = None,
    agent_seconds: float = 0.0,
    agent_runs: int = 6,
    cases: list[str] | None = None,
    command: str = "",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run or continue the benchmark; returns the result as the result file holds it.

    ``cases`` names some of ``CASES``; an empty list leaves the agents alone, ``None`` takes all. Each engine is shared
    among ``gpus`` GPUs, tensor-parallel.

    Raises:
        ConfigError: fewer GPUs, no such model shape, column or case; too little memory; a state of other GPUs or
            another model.
        EngineStartError: an engine did not start.
    """
    from mixquant_agents.bench.prefill.report import report

    say = say or (lambda text: None)
    chosen = list(columns or COLUMNS)
    _known("column", chosen, COLUMNS)
    _known("case", cases or [], [case.name for case in CASES])
    total = _gpu_gib(gpus)
    wanted = [case for case in CASES if cases is None or case.name in cases]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dummy = model in SHAPES
        path = write_model(model, folder) if dummy else Path(model)
        if not path.exists():
            raise ConfigError(f"no model folder {model!r}, and no shape of that name ({', '.join(SHAPES)})")
        config = json.loads((path / "config.json").read_text())
        planned = groups(chosen, wanted, config, total, agent_seconds > 0, gpus)
        state = State.load(state_path or folder / "state.json")
        state.take(model=model, gpus=gpus)
        state.info |= {"command": command, "date": datetime.now(UTC).date().isoformat()}
        logs = (state_path.parent if state_path else folder) / "engine-logs"
        logs.mkdir(exist_ok=True)
        deadline: float | None = None
        for group in planned:
            run = state.run_of(list(group.columns), list(group.cases)) if group.cases else None
            agents = state.agents_of(agent_seconds) if group.agents else None
            if (run is None or len(run.rounds) >= rounds) and (agents is None or agents.pairs >= agent_runs):
                continue
            if deadline is not None and time.monotonic() > deadline:
                say(f"time is up before {', '.join(group.columns)}; continue with the same --state")
                break
            with engines(group, path, dummy, logs, say, gpus) as alive:
                bench = _Bench(alive)
                if deadline is None and minutes is not None:
                    deadline = time.monotonic() + minutes * 60
                _describe(state, alive)
                if run is not None and len(run.rounds) < rounds:
                    _rounds(bench, state, run, group, rounds, deadline, say)
                if agents is None:
                    continue
                try:
                    bench.settle()
                    run_agents(bench.ask, agents, agent_runs, say, state.save)
                except EngineStartError as error:  # what was measured before stays worth reporting
                    say(f"the agents could not be run: {error}")
                    state.info["agents32_error"] = str(error)
                state.save()
        return report(state.info, state.runs, state.agents)


def _known(kind: str, names: list[str], known: tuple[str, ...] | list[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"no {kind} {unknown[0]!r}; choose among {', '.join(known)}")


def _gpu_gib(gpus: int) -> float:
    """GiB of memory of one of ``gpus`` GPUs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        raise ConfigError(
            "bench prefill measures a CUDA GPU, and there is none here; on a CPU formats are emulated, which says "
            "nothing about speed. Use --predict GPU for a prediction from the roofline model"
        )
    if gpus > (found := current_platform.device_count()):
        raise ConfigError(f"--gpus {gpus}, and this machine has {found}; lower it")
    return float(current_platform.get_device_total_memory() / 2**30)


def _describe(state: State, alive: dict[str, EngineProcess]) -> None:
    """Note what the engines say of themselves."""
    import torch
    import vllm

    status = {name: engine.ask(do="status", plugin=name.startswith("mixquant")) for name, engine in alive.items()}
    device = next(iter(status.values()))["device"]
    if state.info.get("device", device) != device:
        raise ConfigError(
            f"{state.path} holds a run on {state.info['device']}, and this is {device}; give another --state"
        )
    state.info |= {"device": device, "vllm": vllm.__version__, "torch": torch.__version__}
    state.info["engines"] = {**status, **state.info.get("engines", {})}


def _rounds(
    bench: _Bench,
    state: State,
    run: Run,
    group: Group,
    rounds: int,
    deadline: float | None,
    say: Callable[[str], None],
) -> None:
    columns, both = list(group.columns), set(PAIR) <= set(group.columns)
    cases = [case for case in group.cases if both or not case.pair_only]
    took = 0.0
    for column in columns:  # everything once, uncounted: first runs compile and fill caches
        for case in cases:
            if not (case.pair_only and column not in PAIR):
                bench.ask(column, {**case.request, **({"repeats": 1} if case.request["do"] == "prefill" else {})})
    while len(run.rounds) < rounds:
        number, began = len(run.rounds), time.monotonic()
        if deadline is not None and began + took > deadline:
            say(f"no time for round {number + 1}, which would take {took:.0f} s; continue with the same --state")
            return
        result: dict[str, dict[str, list[float]]] = {}
        turn = [*columns[number % len(columns) :], *columns[: number % len(columns)]]
        for case in cases:
            pair = [column for column in turn if column in PAIR]
            first = pair if case.pair_only else turn
            result[case.name] = {column: [] for column in first}
            for place, each in enumerate([first, *([pair] * (case.turns - 1) if both else [])]):
                if place % 2 == 0:  # a core's moods last for seconds
                    bench.settle()
                for column in each:
                    found = bench.ask(column, dict(case.request))["ms"]
                    result[case.name][column] += found if isinstance(found, list) else [found]
        took = time.monotonic() - began
        run.rounds.append(result)
        state.save()
        say(f"round {number + 1} of {rounds} took {took:.0f} s: {', '.join(columns)}")
