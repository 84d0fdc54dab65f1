"""``mixquant bench prefill``: what reading and writing cost under each policy, engines taking turns on one GPU.

Columns:

- ``exact_default``: vLLM as it comes, BF16;
- ``exact``: BF16 with the same CUDA graph sizes as ours, the fair baseline;
- ``uniform-fp8``: vLLM's own FP8 (``quantization="fp8"``) with the same graph sizes;
- ``mixquant-fp8``: phase-aware, and ``mixquant-fp8-exact-last``: the same with the last prompt token exact.

All engines are alive at once, each in its own process, and idle while another is measured. Work is done in rounds; a
round runs every case on every engine before the next begins, starting with another engine each time. Small cases, which
the host's moods disturb most, go back and forth between ``exact`` and ``mixquant-fp8`` several times within a round.
What is done is kept in a state file, so that a run can be continued.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill_agents import run_agents
from mixquant_agents.bench.prefill_engines import EngineProcess, engines
from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, EngineStartError

__all__ = ["CASES", "COLUMNS", "Case", "run_prefill"]

COLUMNS = ("exact_default", "exact", "uniform-fp8", "mixquant-fp8", "mixquant-fp8-exact-last")
PAIR = ("exact", "mixquant-fp8")


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: what the worker is asked to do, and how often the pair takes turns within a round.

    ``pair_only``: the other engines do not run it.
    """

    name: str
    request: dict[str, Any]
    turns: int = 1
    pair_only: bool = False


def _prefill(cached: int, tokens: int, repeats: int, turns: int = 1) -> Case:
    name = f"warm_{cached}_{tokens}" if cached else f"cold_{tokens}"
    return Case(name, {"do": "prefill", "tokens": tokens, "cached": cached, "repeats": repeats}, turns)


CASES = [
    *(_prefill(0, n, 5, 4) for n in (64, 128, 256, 512, 1024)),
    *(_prefill(0, n, r, t) for n, r, t in ((2048, 3, 2), (4096, 2, 1), (8192, 2, 1), (16384, 1, 1), (32000, 1, 1))),
    *(_prefill(8192, n, 5, 4) for n in (64, 128, 256, 512)),
    *(_prefill(8192, n, 4, 3) for n in (1024, 2048)),
    *(Case(f"mix_8_{n}", {"do": "mix", "batch": 8, "tokens": n, "repeats": 4}, 2, True) for n in (256, 768, 1536)),
    *(Case(f"tpot_{b}", {"do": "decode", "batch": b, "tokens": 72}) for b in (1, 8, 32)),
]


@dataclass
class State:
    """What has been measured; kept in a file after every case."""

    path: Path
    rounds: list[dict[str, dict[str, list[float]]]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        """From the file, or empty."""
        if not path.exists():
            return cls(path)
        stored = json.loads(path.read_text())
        return cls(path, stored["rounds"], stored["info"])

    def keep_agents(self, found: dict[str, Any]) -> None:
        """What the agents have shown so far."""
        self.info["agents32"] = found
        self.save()

    def save(self) -> None:
        """Write the file; never half of it."""
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps({"info": self.info, "rounds": self.rounds}))
        scratch.replace(self.path)


def _policy_of(column: str) -> dict[str, Any]:
    policy = PrecisionPolicy.of("mixquant-fp8")
    if column.endswith("exact-last"):
        policy = policy.model_copy(update={"exact_last_token": True})
    return policy.model_dump(mode="json")


class _Bench:
    def __init__(self, alive: dict[str, EngineProcess]) -> None:
        self._alive = alive
        self._policy = "mixquant-fp8"

    def ask(self, column: str, request: dict[str, Any]) -> dict[str, Any]:
        """Of the engine of ``column``, switched to its policy."""
        if not column.startswith("mixquant"):
            return self._alive[column].ask(**request)
        engine = self._alive["mixquant-fp8"]
        if column != self._policy:
            engine.ask(do="policy", policy=_policy_of(column))
            self._policy = column
        return engine.ask(**request)


def run_prefill(
    *,
    model: str = "qwen3-8b",
    columns: list[str] | None = None,
    rounds: int = 5,
    minutes: float | None = None,
    state_path: Path | None = None,
    agent_seconds: float = 0.0,
    agent_runs: int = 2,
    kv_gib: dict[str, float] | None = None,
    cases: list[str] | None = None,
    command: str = "",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run or continue the benchmark; returns the result as the result file holds it.

    Raises:
        ConfigError: no GPU, no such model shape or column.
        EngineStartError: an engine did not start.
    """
    from mixquant_agents.bench.prefill_report import report

    say = say or (lambda text: None)
    _check(columns)
    chosen = list(columns or COLUMNS)
    wanted = [case for case in CASES if cases is None or case.name in cases]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dummy = model in SHAPES
        path = write_model(model, folder) if dummy else Path(model)
        if not path.exists():
            raise ConfigError(f"no model folder {model!r}, and no shape of that name ({', '.join(SHAPES)})")
        state = State.load(state_path or folder / "state.json")
        logs = (state_path.parent if state_path else folder) / "engine-logs"
        logs.mkdir(exist_ok=True)
        with engines(chosen, path, kv_gib or {}, dummy, logs, say) as alive:
            bench = _Bench(alive)
            deadline = None if minutes is None else time.monotonic() + minutes * 60
            state.info = {
                "command": command,
                "model": model,
                "turns": {case.name: case.turns for case in wanted},
                "date": datetime.now(UTC).date().isoformat(),
                **_info(alive),
            }
            _rounds(bench, state, chosen, wanted, rounds, deadline, say)
            if agent_seconds and {"exact", "mixquant-fp8"} <= set(chosen):
                try:
                    run_agents(bench.ask, agent_seconds, agent_runs, say, state.keep_agents)
                except EngineStartError as error:  # what was measured before stays worth reporting
                    say(f"the agents could not be run: {error}")
                    state.info["agents32_error"] = str(error)
                state.save()
        return report(state.info, state.rounds)


def _check(columns: list[str] | None) -> None:
    unknown = sorted(set(columns or ()) - set(COLUMNS))
    if unknown:
        raise ConfigError(f"no column {unknown[0]!r}; choose among {', '.join(COLUMNS)}")
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        raise ConfigError(
            "bench prefill measures a CUDA GPU, and there is none here; on a CPU formats are emulated, which says "
            "nothing about speed. Use --predict GPU for a prediction from the roofline model"
        )


def _info(alive: dict[str, EngineProcess]) -> dict[str, Any]:
    import torch
    import vllm

    status = {name: engine.ask(do="status", plugin=name.startswith("mixquant")) for name, engine in alive.items()}
    first = next(iter(status.values()))
    return {"device": first["device"], "vllm": vllm.__version__, "torch": torch.__version__, "engines": status}


def _rounds(
    bench: _Bench,
    state: State,
    columns: list[str],
    cases: list[Case],
    rounds: int,
    deadline: float | None,
    say: Callable[[str], None],
) -> None:
    if not state.rounds:  # everything once, uncounted: first runs compile and fill caches
        for column in columns:
            for case in cases:
                if case.pair_only and column not in PAIR:
                    continue
                if case.request["do"] != "prefill" or case.request["tokens"] <= 8192:
                    bench.ask(column, {**case.request, **({"repeats": 1} if case.request["do"] == "prefill" else {})})
    while len(state.rounds) < rounds:
        number = len(state.rounds)
        result: dict[str, dict[str, list[float]]] = {}
        turn = [*columns[number % len(columns) :], *columns[: number % len(columns)]]
        for case in cases:
            pair = [column for column in turn if column in PAIR]
            first = pair if case.pair_only else turn
            result[case.name] = {column: [] for column in first}
            for column in [*first, *pair * (case.turns - 1)]:
                found = bench.ask(column, dict(case.request))["ms"]
                result[case.name][column] += found if isinstance(found, list) else [found]
            if deadline is not None and time.monotonic() > deadline:
                say(f"time is up in round {number + 1}; {number} rounds are complete")
                return
        state.rounds.append(result)
        state.save()
        say(f"round {number + 1} of {rounds}")
