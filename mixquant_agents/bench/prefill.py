"""``mixquant bench prefill``: what reading and writing cost under each policy, engines taking turns on one GPU.

Columns:

- ``exact_default``: vLLM as it comes, BF16;
- ``exact``: BF16 with the same CUDA graph sizes as ours, the fair baseline;
- ``uniform-fp8``: vLLM's own FP8 (``quantization="fp8"``) with the same graph sizes;
- ``mixquant-fp8``: phase-aware, and ``mixquant-fp8-exact-last``: the same with the last prompt token exact.

All engines are alive at once, each in its own process, and idle while another is measured. Work is done in rounds; a
round runs every case on every engine before the next begins, starting with another engine each time. What is done is
kept in a state file, so that a run can be continued.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, EngineStartError
from mixquant_agents.quant.gpu.engine_config import CAPTURE_SIZES

__all__ = ["CASES", "COLUMNS", "Case", "run_prefill"]

COLUMNS = ("exact_default", "exact", "uniform-fp8", "mixquant-fp8", "mixquant-fp8-exact-last")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: what the worker is asked to do."""

    name: str
    request: dict[str, Any]


def _prefill(cached: int, tokens: int, repeats: int) -> Case:
    name = f"warm_{cached}_{tokens}" if cached else f"cold_{tokens}"
    return Case(name, {"do": "prefill", "tokens": tokens, "cached": cached, "repeats": repeats})


CASES = [
    *(_prefill(0, n, 7) for n in (64, 128, 256, 512, 1024)),
    *(_prefill(0, n, r) for n, r in ((2048, 3), (4096, 2), (8192, 2), (16384, 1), (32000, 1))),
    *(_prefill(8192, n, 5) for n in (64, 128, 256, 512, 1024, 2048)),
    *(Case(f"tpot_{b}", {"do": "decode", "batch": b, "tokens": 72}) for b in (1, 8, 32)),
]


def engine_arguments(column: str, model: Path, kv_gib: float, dummy: bool) -> dict[str, Any]:
    """vLLM's engine arguments for a column."""
    values: dict[str, Any] = {
        "model": str(model),
        "skip_tokenizer_init": True,
        "max_model_len": 33_000,
        "max_num_batched_tokens": 8192,
        "kv_cache_memory_bytes": int(kv_gib * GIB),
        "gpu_memory_utilization": 0.1,
        "attention_backend": "FLASH_ATTN",
        "disable_log_stats": True,
        "seed": 0,
    }
    if dummy:
        values["load_format"] = "dummy"
    if column != "exact_default":
        values["max_num_seqs"] = 64
        values["compilation_config"] = {"cudagraph_capture_sizes": list(CAPTURE_SIZES)}
    if column == "uniform-fp8":
        values["quantization"] = "fp8"
    if column.startswith("mixquant"):
        policy = PrecisionPolicy.of("mixquant-fp8")
        values["quantization"] = "mixquant"
        values["hf_overrides"] = {
            "quantization_config": {"quant_method": "mixquant", "policy": policy.model_dump(mode="json")}
        }
        values["additional_config"] = {"mixquant": policy.fingerprint}
    return values


class EngineProcess:
    """A worker process and the conversation with it."""

    def __init__(self, name: str, arguments: dict[str, Any], log: Path) -> None:
        self.name = name
        self._log = log
        self._stderr = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mixquant_agents.bench.prefill_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._ready: dict[str, Any] | None = None
        self._write(arguments)

    def _write(self, value: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise EngineStartError(f"engine {self.name!r} has no stdin")
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            tail = "".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            raise EngineStartError(f"engine {self.name!r} ended; its log ({self._log}) ends with:\n{tail}")
        found: dict[str, Any] = json.loads(line)
        return found

    def wait_for(self, *events: str) -> dict[str, Any]:
        """The next event of these kinds.

        Raises:
            EngineStartError: the engine failed.
        """
        if "ready" in events and self._ready is not None:
            return self._ready
        while True:
            found = self._read()
            if found.get("event") == "ready":
                self._ready = found
            if found.get("event") == "failed":
                raise EngineStartError(f"engine {self.name!r} did not start: {found['text']}; see {self._log}")
            if found.get("event") in events:
                return found

    def go(self) -> None:
        """Let the engine start, which until now has only imported."""
        self._write({})

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            EngineStartError: it failed; says how.
        """
        self._write(request)
        while True:
            found = self._read()
            if "result" in found:
                result: dict[str, Any] = found["result"]
                return result
            if "error" in found:
                raise EngineStartError(f"engine {self.name!r}: {found['error']}; see {self._log}")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._stderr.close()


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

    def save(self) -> None:
        """Write the file; never half of it."""
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps({"info": self.info, "rounds": self.rounds}))
        scratch.replace(self.path)


@contextlib.contextmanager
def engines(
    columns: list[str], model: Path, kv_gib: dict[str, float], dummy: bool, logs: Path, say: Callable[[str], None]
) -> Iterator[dict[str, EngineProcess]]:
    """Processes by name. Ours first: its start-up measurement wants the GPU for itself; the others then all at once."""
    names = list(dict.fromkeys("mixquant-fp8" if c.startswith("mixquant") else c for c in columns))
    names.sort(key=lambda name: not name.startswith("mixquant"))
    alive: dict[str, EngineProcess] = {}
    try:
        for name in names:
            arguments = engine_arguments(name, model, kv_gib.get(name, 5.0), dummy)
            alive[name] = EngineProcess(name, arguments, logs / f"{name}.log")
        for name, engine in alive.items():
            engine.go()
            if name.startswith("mixquant"):
                say(f"{name}: {engine.wait_for('measured', 'ready').get('text', 'ready')}")
        for name, engine in alive.items():
            ready = engine.wait_for("ready")
            say(f"{name}: ready after {ready['start_seconds']:.0f} s")
        yield alive
    finally:
        for engine in alive.values():
            engine.close()


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
    deadline = None if minutes is None else time.monotonic() + minutes * 60
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
            state.info = {
                "command": command,
                "model": model,
                "date": datetime.now(UTC).date().isoformat(),
                **_info(alive),
            }
            _rounds(bench, state, chosen, wanted, rounds, deadline, say)
            if agent_seconds and {"exact", "mixquant-fp8"} <= set(chosen):
                try:
                    state.info["agents32"] = _agents(bench, agent_seconds, say)
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
                if case.request["do"] != "prefill" or case.request["tokens"] <= 8192:
                    bench.ask(column, {**case.request, **({"repeats": 1} if case.request["do"] == "prefill" else {})})
    while len(state.rounds) < rounds:
        number = len(state.rounds)
        result: dict[str, dict[str, list[float]]] = {}
        turn = [*columns[number % len(columns) :], *columns[: number % len(columns)]]
        for case in cases:
            result[case.name] = {}
            for column in turn:
                found = bench.ask(column, dict(case.request))["ms"]
                result[case.name][column] = found if isinstance(found, list) else [found]
            if deadline is not None and time.monotonic() > deadline:
                say(f"time is up in round {number + 1}; {number} rounds are complete")
                return
        state.rounds.append(result)
        state.save()
        say(f"round {number + 1} of {rounds}")


def _agents(bench: _Bench, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """32 agents with 8k cached tokens (6k of them shared), 2k new, 160 written; closed loop, then at a fixed rate."""
    turn = {"do": "agents", "agents": 32, "shared": 6144, "own": 2048, "new": 2048, "answer": 160, "seconds": seconds}
    closed: dict[str, list[dict[str, Any]]] = {"exact": [], "mixquant-fp8": []}
    opened: dict[str, list[dict[str, Any]]] = {"exact": [], "mixquant-fp8": []}
    for order in (("exact", "mixquant-fp8"), ("mixquant-fp8", "exact")):
        for column in order:
            closed[column].append(bench.ask(column, turn))
            say(f"agents, closed loop, {column}: {closed[column][-1]['tokens_per_s']:.0f} tokens/s")
    rate = 0.8 * sum(r["tokens_per_s"] for r in closed["exact"]) / len(closed["exact"]) / 160
    for seed, order in enumerate((("mixquant-fp8", "exact"), ("exact", "mixquant-fp8"))):
        for column in order:
            opened[column].append(bench.ask(column, {**turn, "rate": rate, "seed": seed}))
            say(f"agents, {rate:.2f} turns/s, {column}: TTFT p95 {opened[column][-1]['ttft_ms'].get('p95', 0):.0f} ms")
    return {"closed": closed, "open": opened, "rate": rate}
