"""Is ``draft="auto"`` ever slower than exact? ``python -m mixquant_agents.bench.gpu.auto_drafts OUT.json [SECONDS]``.

Engines of the Qwen3-8B shape with random weights take turns on one GPU: ``exact``, ``auto``, whose drafts are right
with probability 0.95 (vLLM's ``synthetic`` acceptance), and ``poor``, the same with 0.4, where drafts do not pay.
Nobody says how much is drafted: the policy's own rule decides. A case is a number of writing requests and the tokens
that each has read; ``over_exact`` says how many times faster than exact each engine writes, round by round, and
``slow`` which lower ends are below 0.99.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mixquant_agents.bench.gpu.writing import SERVE, arguments, twin_arguments
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, start_in_order
from mixquant_agents.bench.prefill.stats import speedup
from mixquant_agents.bench.shapes import write_model
from mixquant_agents.files import write_whole

ACCEPTANCE = {"auto": 0.95, "poor": 0.4}
COLUMNS = (*ACCEPTANCE, "exact")
"""Drafting ones first: their start-up measurement wants the GPU for itself."""
GRID = (
    (1, 128), (1, 2048), (1, 8064), (4, 128), (4, 4032), (8, 6000), (16, 1024), (32, 128), (32, 1024), (48, 128),
    (64, 512),
)  # fmt: skip
"""``(requests, tokens that each has read)``."""
TOKENS = 72
NEVER_SLOWER = 0.99


def start(folder: Path, logs: Path) -> dict[str, EngineProcess]:
    """The engines, ready."""
    model = write_model("qwen3-8b", folder)
    engines = {}
    for name in COLUMNS:
        values = arguments("exact", model)
        if name in ACCEPTANCE:
            values |= twin_arguments(model, (0, 3), draft="auto", acceptance=ACCEPTANCE[name])
        engines[name] = EngineProcess(name, values, logs / f"auto-{name}.log", SERVE)
    start_in_order(engines, ACCEPTANCE, functools.partial(print, flush=True))
    return engines


def label(batch: int, known: int) -> str:
    """Of a case."""
    return f"{batch}x{known}"


def turn(engines: dict[str, EngineProcess], number: int, rows: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Each case once on each engine, in an order that goes round."""
    columns = [*COLUMNS[number % len(COLUMNS) :], *COLUMNS[: number % len(COLUMNS)]]
    for batch, known in GRID:
        for column in columns:
            measured = engines[column].ask(do="write", batch=batch, known=known, tokens=TOKENS)
            rows.setdefault(label(batch, known), {}).setdefault(column, []).append(measured)


def summary(rows: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Of each case: milliseconds per token, tokens per step, and how many times faster than exact; which are slow."""
    cases: dict[str, Any] = {}
    for case, columns in rows.items():
        times = {name: [each["ms"] for each in turns] for name, turns in columns.items()}
        cases[case] = {
            name: {
                "ms": round(statistics.median(times[name]), 3),
                "tokens_per_step": round(statistics.median(each["tokens_per_step"] for each in columns[name]), 2),
                "over_exact": speedup(times["exact"], times[name]),
            }
            for name in columns
        }
    slow = [
        f"{case} {name}"
        for case, columns in cases.items()
        for name, each in columns.items()
        if name != "exact" and each["over_exact"]["low95"] < NEVER_SLOWER
    ]
    return {"cases": cases, "slow": slow}


def main(out: str, seconds: str = "60") -> None:
    """Measure for so many seconds, four rounds at least."""
    engines = start(Path(tempfile.mkdtemp()), Path(tempfile.gettempdir()))
    result: dict[str, Any] = {"command": f"python -m mixquant_agents.bench.gpu.auto_drafts {Path(out).name} {seconds}"}
    result["device"] = engines["auto"].ask(do="status", plugin=True)["device"]
    for engine in engines.values():
        engine.ask(do="pin", cores=by_speed())
    turn(engines, 0, {})  # first runs fill caches, and say how often drafts are right
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    until, count = time.monotonic() + float(seconds), 0
    while count < 4 or time.monotonic() < until:
        turn(engines, count, rows)
        count += 1
        result |= {"rounds": count, "raw": rows}
        if count > 1:
            result |= summary(rows)
            write_whole(Path(out), json.dumps(result))
    for case, columns in result["cases"].items():
        figures = {name: (each["ms"], each["tokens_per_step"], *(round(v, 3) for v in each["over_exact"].values()))
                for name, each in columns.items()}  # fmt: skip
        print(case, figures, flush=True)
    print("slower than 0.99 by the lower end:", result["slow"] or "none", f"({count} rounds)", flush=True)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
