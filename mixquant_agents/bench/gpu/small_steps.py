"""Small steps, held against each other within one run: ``python -m mixquant_agents.bench.gpu.small_steps OUT.json``.

On a GPU with 80 GB four engines of the Qwen3-8B shape with random weights take turns of a few requests each: ``exact``
with vLLM's default graphs (full ones for decode, pieces for the rest) and with full graphs for all steps
(``exact-full``: its answers are not to be trusted, its times are), ``mixquant-fp8`` with full graphs of small steps,
the same engine without them (``mixquant-fp8-pieces``), and vLLM's own FP8 (``uniform-fp8``). ``OUT.json [SECONDS]``
ends after so many seconds of measuring; ``OUT.json SECONDS three`` leaves vLLM's FP8 out.

Each request gives milliseconds ``[asking, executing, on the GPU, total]``: adding the request; the runner's
``execute_model``, which only launches; from its first to its last kernel; until the first token is back. A turn's
figure is the median of its requests; ratios are formed turn by turn, over ``exact`` in the mode that is the faster one
by its median.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixquant_agents.bench.gpu.timing import StepTime, time_steps
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments, start_in_order
from mixquant_agents.bench.prefill.stats import ratio_interval
from mixquant_agents.bench.prefill.worker import Session
from mixquant_agents.bench.prefill.worker import main as serve
from mixquant_agents.bench.shapes import write_model
from mixquant_agents.files import write_whole
from mixquant_agents.quant.runtime import runtime_of

CASES = [(64, 0), *((n, 8192) for n in (32, 64, 128, 256))]
OURS = "mixquant-fp8"
EXACT = ("exact", "exact-full")
ENGINES = (OURS, *EXACT, "uniform-fp8")
"""Ours first: its start-up measurement wants the GPU for itself."""
PIECES = "mixquant-fp8-pieces"
COLUMNS = (OURS, PIECES, *EXACT, "uniform-fp8")
SIZES = [*(1, 2, 4), *range(8, 257, 8), 384, 512, 1024, 2048]
KV_GIB = 1.7
REPEATS = 5
SERVE = (sys.executable, "-m", "mixquant_agents.bench.gpu.small_steps", "--serve")


class TimedSession(Session):
    """Also tells where a request's time went."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._steps: list[StepTime] = []
        self._kept: dict[Any, Any] = {}
        self.engine.collective_rpc(time_steps, args=(self._steps,))

    def full_graphs(self, on: bool) -> None:
        """Replay full graphs of small steps from now on, or do without."""
        self.engine.collective_rpc(_full_graphs, args=(self._kept, on))

    def split(self, tokens: int, cached: int, repeats: int) -> dict[str, Any]:
        """Where the time of ``repeats`` requests went."""
        prefix = self._tokens(cached, 7) if cached else []
        self._add([*prefix, *self._tokens(16)], 1)
        for _ in self._run():
            pass
        rows = []
        for _ in range(repeats):
            prompt = [*prefix, *self._tokens(tokens)]
            self._steps.clear()
            started = time.perf_counter()
            self._add(prompt, 1)
            asked = time.perf_counter()
            for instant, _ in self._run():
                step = self._steps[0]
                step.end.synchronize()
                rows.append([(asked - started) * 1e3, step.host_ms, step.gpu_ms, (instant - started) * 1e3])
        return {"ms": rows}


def _full_graphs(worker: Any, kept: dict[Any, Any], on: bool) -> None:
    runtime = runtime_of(worker.vllm_config)
    if runtime is not None:
        graphs = runtime.router.graphs
        kept.update(graphs.full)
        graphs.full = dict(kept) if on else {}


def arguments(column: str, model: Path) -> dict[str, Any]:
    """vLLM's arguments for a column."""
    values = column_arguments("exact" if column in EXACT else column, model, KV_GIB, True)
    mode = {"cudagraph_mode": "FULL"} if column in ("exact-full", OURS) else {}
    return values | {"max_model_len": 10_500, "compilation_config": {"cudagraph_capture_sizes": SIZES, **mode}}


def start(folder: Path, logs: Path, names: Sequence[str] = ENGINES) -> dict[str, EngineProcess]:
    model = write_model("qwen3-8b", folder)
    engines = {name: EngineProcess(name, arguments(name, model), logs / f"small-{name}.log", SERVE) for name in names}
    start_in_order(engines, (OURS,), functools.partial(print, flush=True))
    return engines


def label(tokens: int, cached: int) -> str:
    return f"warm_{cached}_{tokens}" if cached else f"cold_{tokens}"


def turn(engines: dict[str, EngineProcess], number: int, rows: dict[str, dict[str, list[Any]]]) -> None:
    """Each case once on each engine, in an order that goes round."""
    columns = [name for name in COLUMNS if name in engines or name == PIECES]
    order = [*columns[number % len(columns) :], *columns[: number % len(columns)]]
    for tokens, cached in CASES:
        for column in order:
            engine = engines[OURS if column == PIECES else column]
            if column in (OURS, PIECES):
                engine.ask(do="full_graphs", on=column == OURS)
            asked = engine.ask(do="split", tokens=tokens, cached=cached, repeats=REPEATS)
            rows[label(tokens, cached)].setdefault(column, []).append(asked["ms"])


def summary(columns: dict[str, list[list[list[float]]]]) -> dict[str, Any]:
    """Of one case: medians of the parts by column, and how many times faster ours is, turn by turn.

    Args:
        columns: by column and turn the requests' ``[asking, executing, on the GPU, total]``.
    """
    totals = {name: [statistics.median(row[3] for row in each) for each in turns] for name, turns in columns.items()}
    best = min(EXACT, key=lambda name: statistics.median(totals[name]))
    parts = {
        name: [round(statistics.median(row[part] for each in turns for row in each), 3) for part in range(4)]
        for name, turns in columns.items()
    }
    over = {
        name: ratio_interval([other / own for other, own in zip(totals[name], totals[OURS], strict=True)])
        for name in columns
        if name != OURS
    }
    return {"best_exact": best, "ms": parts, "over_exact": over[best], "over": over}


def main(out: str, seconds: str = "60", engines_of: str = "four") -> None:
    names = ENGINES[: {"three": 3, "four": 4}[engines_of]]
    engines = start(Path(tempfile.mkdtemp()), Path(tempfile.gettempdir()), names)
    command = f"python -m mixquant_agents.bench.gpu.small_steps {Path(out).name} {seconds} {engines_of}"
    status = {name: engine.ask(do="status", plugin=name == OURS) for name, engine in engines.items()}
    result: dict[str, Any] = {"command": command, "engines": status, "device": status[OURS]["device"]}
    for engine in engines.values():
        engine.ask(do="pin", cores=by_speed())
    turn(engines, 0, {label(*case): {} for case in CASES})  # first runs compile and fill caches
    rows: dict[str, dict[str, list[Any]]] = {label(*case): {} for case in CASES}
    until, count = time.monotonic() + float(seconds), 0
    while count < 6 or time.monotonic() < until:
        turn(engines, count, rows)
        count += 1
    result |= {"turns": count, "cases": {name: summary(columns) for name, columns in rows.items()}, "raw": rows}
    write_whole(Path(out), json.dumps(result))
    for name, case in result["cases"].items():
        ratios = {other: tuple(round(value, 3) for value in ratio.values()) for other, ratio in case["over"].items()}
        print(name, case["best_exact"], json.dumps(case["ms"]), ratios, flush=True)
    engines[OURS].ask(do="full_graphs", on=True)
    after = engines[OURS].ask(do="status", plugin=True)["plugin"]["gpu"]
    print({name: after[name] for name in ("captured_full_graphs", "full_graph_steps")}, flush=True)
    result["full_graph_steps"] = after["full_graph_steps"]
    write_whole(Path(out), json.dumps(result))
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(TimedSession)
    else:
        main(*sys.argv[1:4])
