"""Do whole engines agree? ``python benchmarks/gpu/check_engines.py MODEL OUT.json`` (a folder, or a shape).

Four engines on one GPU: ``exact``; phase-aware with full and piecewise graphs, with piecewise graphs alone, and eager.
Greedy answers to prompts below the row threshold must be the exact engine's own; longer prompts are quantized, and
there the three phase-aware engines should say the same.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill import EngineProcess, engine_arguments
from mixquant_agents.bench.shapes import SHAPES, write_model

SHORT = (5, 17, 40, 60)
LONG = (200, 300, 700, 1500, 3000)
ANSWER = 32


def same(a: list[int], b: list[int]) -> int:
    """How many leading tokens agree."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def main(model: str, out: str) -> int:
    folder = Path(tempfile.mkdtemp())
    dummy = model in SHAPES
    path = write_model(model, folder) if dummy else Path(model)
    limit = json.loads((path / "config.json").read_text())["vocab_size"] - 1
    changes: dict[str, dict[str, Any]] = {
        "exact": {},
        "mixquant": {},
        "mixquant-piecewise": {"compilation_config": {"cudagraph_mode": "PIECEWISE", "cudagraph_capture_sizes": [
            *range(8, 257, 8), 512, 1024, 2048]}},
        "mixquant-eager": {"enforce_eager": True, "compilation_config": {}},
    }  # fmt: skip
    engines: dict[str, EngineProcess] = {}
    for name, change in changes.items():
        column = "exact" if name == "exact" else "mixquant-fp8"
        arguments = {**engine_arguments(column, path, 2.0, dummy), "max_model_len": 8192, **change}
        engines[name] = EngineProcess(name, arguments, Path(out).parent / f"{name}.log")
    for engine in engines.values():
        engine.go()
        if engine.name != "exact":
            engine.wait_for("measured", "ready")
    for engine in engines.values():
        engine.wait_for("ready")
    random = np.random.default_rng(3)
    prompts = {n: random.integers(100, limit, size=n).tolist() for n in (*SHORT, *LONG)}
    answers = {
        name: dict(zip(prompts, engine.ask(do="greedy", prompts=list(prompts.values()), answer=ANSWER)["answers"],
                       strict=True))
        for name, engine in engines.items()
    }  # fmt: skip
    status = engines["mixquant"].ask(do="status", plugin=True)
    result: dict[str, Any] = {"model": model, "answer": ANSWER, "device": status["device"], "agree": {}}
    for name in list(changes)[1:]:
        result["agree"][f"{name} with exact"] = {n: same(answers[name][n], answers["exact"][n]) for n in prompts}
    for name in ("mixquant-piecewise", "mixquant-eager"):
        result["agree"][f"{name} with mixquant"] = {n: same(answers[name][n], answers["mixquant"][n]) for n in prompts}
    result["plugin"] = status["plugin"]
    Path(out).write_text(json.dumps(result, indent=1))
    for engine in engines.values():
        engine.close()
    print(json.dumps(result["agree"]))
    threshold = result["plugin"]["row_threshold"]
    wrong = [n for n in prompts if n <= threshold and result["agree"]["mixquant with exact"][n] < ANSWER]
    print("threshold", threshold, "short prompts that differ:", wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
