"""Do whole engines agree? ``python benchmarks/gpu/check_engines.py MODEL OUT.json`` (a folder, or a shape).

Engines on one GPU: ``exact`` with graphs and eager; phase-aware FP8 with full and piecewise graphs, with piecewise
graphs alone, and eager; phase-aware INT8. Greedy answers to prompts below the row threshold must be the exact engine's
own; longer prompts are quantized, and there the three FP8 engines must say the same. Engines that are compiled and
engines that are not round differently, so an answer may part from another where the two likeliest tokens are a tie:
within ``TIE`` in log probability, one step of BF16 logits. The eager exact engine shows how often that happens anyway.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill_engines import EngineProcess, engine_arguments
from mixquant_agents.bench.shapes import SHAPES, write_model

SHORT = (5, 17, 40, 60, 100, 120)
LONG = (200, 300, 500, 700, 1100, 1500, 2500, 3000, 6000)
ANSWER = 32
TIE = 0.13
FAMILY = ("mixquant", "mixquant-piecewise", "mixquant-eager")
Answers = dict[int, tuple[list[int], list[float]]]


def compared(mine: Answers, theirs: Answers) -> dict[int, dict[str, Any]]:
    """Per prompt: leading tokens that agree, and how clear ``theirs`` was where they part (None: they do not)."""
    found = {}
    for n, (tokens, _) in mine.items():
        other, margins = theirs[n]
        at = next((i for i, (x, y) in enumerate(zip(tokens, other, strict=True)) if x != y), len(tokens))
        found[n] = {"same": at, "margin": round(margins[at], 3) if at < len(tokens) else None}
    return found


def apart(found: dict[int, dict[str, Any]], lengths: list[int]) -> list[int]:
    """Prompts on which two engines part although it was no tie."""
    return [n for n in lengths if found[n]["margin"] is not None and found[n]["margin"] > TIE]


def prompts_for(path: Path) -> dict[int, list[int]]:
    """Pieces of this repository's documents where the model has a tokenizer, else random tokens."""
    random = np.random.default_rng(3)
    if not (path / "tokenizer.json").exists():
        limit = json.loads((path / "config.json").read_text())["vocab_size"] - 1
        return {n: random.integers(100, limit, size=n).tolist() for n in (*SHORT, *LONG)}
    from tokenizers import Tokenizer

    root = Path(__file__).parents[2]
    text = "\n".join(
        file.read_text() for file in (root / "README.md", *sorted((root / "mixquant_agents").glob("*/*.py")))
    )
    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    starts = random.integers(0, len(ids) - max(LONG), size=len(SHORT) + len(LONG))
    return {n: ids[start : start + n] for n, start in zip((*SHORT, *LONG), starts.tolist(), strict=True)}


def start(path: Path, dummy: bool, logs: Path) -> dict[str, EngineProcess]:
    graphs = {
        "cudagraph_mode": "PIECEWISE",
        "cudagraph_capture_sizes": [*range(8, 257, 8), 512, 1024, 2048],
    }
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "exact": ("exact", {}),
        "exact-eager": ("exact", {"enforce_eager": True, "compilation_config": {}}),
        "mixquant": ("mixquant-fp8", {}),
        "mixquant-piecewise": ("mixquant-fp8", {"compilation_config": graphs}),
        "mixquant-eager": ("mixquant-fp8", {"enforce_eager": True, "compilation_config": {}}),
        "mixquant-int8": ("mixquant-int8", {}),
    }
    engines = {}
    for name, (column, change) in changes.items():
        arguments = {**engine_arguments(column, path, 2.0, dummy), "max_model_len": 8192, **change}
        engines[name] = EngineProcess(name, arguments, logs / f"{name}.log")
    for engine in engines.values():
        engine.go()
    for engine in engines.values():
        engine.wait_for("ready")
    return engines


def main(model: str, out: str) -> int:
    folder = Path(tempfile.mkdtemp())
    dummy = model in SHAPES
    path = write_model(model, folder) if dummy else Path(model)
    engines = start(path, dummy, Path(out).parent)
    prompts = prompts_for(path)
    answers: dict[str, Answers] = {}
    for name, engine in engines.items():
        found = engine.ask(do="greedy", prompts=list(prompts.values()), answer=ANSWER)
        answers[name] = dict(zip(prompts, zip(found["answers"], found["margins"], strict=True), strict=True))
    status = {name: engines[name].ask(do="status", plugin=True)["plugin"] for name in (*FAMILY, "mixquant-int8")}
    for engine in engines.values():
        engine.close()
    agree = {f"{name} with exact": compared(answers[name], answers["exact"]) for name in list(engines)[1:]}
    agree |= {f"{name} with mixquant": compared(answers[name], answers["mixquant"]) for name in FAMILY[1:]}
    threshold = min(status[name]["row_threshold"] for name in FAMILY)
    short, long = [n for n in prompts if n <= threshold], [n for n in prompts if n > threshold]
    failed = {f"{name} with exact": apart(agree[f"{name} with exact"], short) for name in FAMILY}
    failed |= {f"{name} with mixquant": apart(agree[f"{name} with mixquant"], long) for name in FAMILY[1:]}
    result = {"model": model, "answer": ANSWER, "tie": TIE, "threshold": threshold, "failed": failed, "agree": agree,
              "answers": {name: {n: tokens for n, (tokens, _) in each.items()} for name, each in answers.items()},
              "plugin": status}  # fmt: skip
    Path(out).write_text(json.dumps(result, indent=1))
    for pair, each in agree.items():
        print(pair, {n: tuple(row.values()) if row["margin"] is not None else "same" for n, row in each.items()})
    print("threshold", threshold, "parted without a tie:", failed)
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
