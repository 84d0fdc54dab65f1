"""Do whole engines agree? ``python benchmarks/gpu/check_engines.py MODEL OUT.json`` (a folder, or a shape).

Engines on one GPU: ``exact`` with graphs and eager; phase-aware FP8 with full and piecewise graphs, with piecewise
graphs alone, and eager; INT8; NVFP4, emulated. Greedy answers to prompts below the row threshold must be the exact
engine's own, alone and while other prompts are read beside them. Longer prompts are quantized, and there the three FP8
engines must say the same, with the last prompt token quantized and with it exact. Engines that are compiled and engines
that are not round differently, so answers may part where the two likeliest tokens are a tie: within ``TIE`` in log
probability, a step or two of BF16 logits. The eager exact engine shows how often that happens anyway.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill_engines import EngineProcess, engine_arguments
from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy

SHORT = (5, 17, 40, 60, 100, 120)
LONG = (200, 300, 500, 700, 1100, 1500, 2500, 3000, 6000)
ANSWER = 32
TIE = 0.13
THRESHOLD = 128
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
    sizes = {"cudagraph_capture_sizes": [1, 2, 4, *range(8, 257, 8), 384, 512, 768, 1024, 1536, 2048]}
    piecewise = {"compilation_config": {**sizes, "cudagraph_mode": "PIECEWISE"}}
    full = {"compilation_config": sizes}
    eager: dict[str, Any] = {"enforce_eager": True, "compilation_config": {}}
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "exact": ("exact", full),
        "exact-eager": ("exact", eager),
        "mixquant": ("mixquant-fp8", full),
        "mixquant-piecewise": ("mixquant-fp8", piecewise),
        "mixquant-eager": ("mixquant-fp8", eager),
        "mixquant-int8": ("mixquant-int8", full),
        "mixquant-nvfp4": ("mixquant-nvfp4", {"compilation_config": {}}),  # emulated here: must become eager by itself
    }
    engines = {}
    for name, (column, change) in changes.items():
        arguments = {**engine_arguments(column, path, 2.0, dummy), "max_model_len": 8192, **change}
        if "hf_overrides" in arguments:  # on a model this small measuring would keep every step exact
            arguments["hf_overrides"]["quantization_config"]["policy"]["row_threshold"] = THRESHOLD
        engines[name] = EngineProcess(name, arguments, logs / f"{name}.log")
    for engine in engines.values():
        engine.go()
    for engine in engines.values():
        engine.wait_for("ready")
    return engines


def answered(engine: EngineProcess, prompts: dict[int, list[int]], company: list[list[int]] | None = None) -> Answers:
    found = engine.ask(do="greedy", prompts=list(prompts.values()), answer=ANSWER, company=company)
    return dict(zip(prompts, zip(found["answers"], found["margins"], strict=True), strict=True))


def main(model: str, out: str) -> int:
    folder = Path(tempfile.mkdtemp())
    dummy = model in SHAPES
    path = write_model(model, folder) if dummy else Path(model)
    engines = start(path, dummy, Path(out).parent)
    prompts = prompts_for(path)
    short = {n: tokens for n, tokens in prompts.items() if n <= THRESHOLD}
    longer = {n: tokens for n, tokens in prompts.items() if n > THRESHOLD}
    with ThreadPoolExecutor() as pool:  # nothing is timed, so all processes answer at once
        found = pool.map(lambda engine: answered(engine, prompts), engines.values())
        answers = dict(zip(engines, found, strict=True))
    # Short prompts are written exact also while others are read: in mixed steps, from the slot of a captured graph.
    company = [tokens for n, tokens in longer.items() if n > 250]
    beside = {name: answered(engines[name], short, company) for name in ("exact", *FAMILY)}
    for name in FAMILY:
        policy = engines[name].ask(do="status", plugin=True)["plugin"]["policy"]
        fields = PrecisionPolicy.of("mixquant-fp8").model_dump(mode="json")
        engines[name].ask(do="policy", policy={**fields, "row_threshold": THRESHOLD, "exact_last_token": True})
        answers[f"{name}-last"] = answered(engines[name], longer)
        print(name, policy)
    names = (*FAMILY, "mixquant-int8", "mixquant-nvfp4")
    status = {name: engines[name].ask(do="status", plugin=True)["plugin"] for name in names}
    for engine in engines.values():
        engine.close()
    agree = {f"{name} with exact": compared(answers[name], answers["exact"]) for name in list(engines)[1:]}
    must = {f"{name} with exact": list(short) for name in (*FAMILY, "mixquant-int8", "exact-eager")}
    for name in FAMILY:
        agree[f"{name} beside others with exact alone"] = compared(beside[name], answers["exact"])
        must[f"{name} beside others with exact alone"] = list(short)
    agree["exact beside others with exact alone"] = compared(beside["exact"], answers["exact"])
    for name in FAMILY[1:]:
        agree[f"{name} with mixquant"] = compared(answers[name], answers["mixquant"])
        agree[f"{name}-last with mixquant-last"] = compared(answers[f"{name}-last"], answers["mixquant-last"])
        must |= {f"{name} with mixquant": list(prompts), f"{name}-last with mixquant-last": list(longer)}
    failed = {pair: apart(agree[pair], lengths) for pair, lengths in must.items()}
    result = {"model": model, "answer": ANSWER, "tie": TIE, "threshold": THRESHOLD, "failed": failed, "agree": agree,
              "answers": {name: {n: tokens for n, (tokens, _) in each.items()} for name, each in answers.items()},
              "plugin": status}  # fmt: skip
    Path(out).write_text(json.dumps(result, indent=1))
    for pair, each in agree.items():
        told = {n: tuple(row.values()) for n, row in each.items() if row["margin"] is not None}
        print(f"{pair}: {len(each) - len(told)} of {len(each)} the same;", told)
    print("parted without a tie:", {pair: lengths for pair, lengths in failed.items() if lengths})
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
