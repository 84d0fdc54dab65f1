"""Do whole engines agree? ``python benchmarks/gpu/check_engines.py MODEL OUT.json [GROUP…] [--lora FOLDER]``

``MODEL`` is a folder, or the name of a shape. Groups of engines, one after another on one GPU:

- ``graphs``: ``exact`` with graphs and eager; phase-aware FP8 with full and piecewise graphs, with piecewise graphs
  alone, and eager.
- ``formats``: INT8; NVFP4, emulated where the device lacks it (it must become eager by itself).
- ``features``: FP8 on vLLM's older runner; guessing tokens ahead by n-gram; with a LoRA adapter.
- ``parallel``: FP8 and exact on two GPUs (a shape: random weights differ by rank, so these two are compared alone).

Greedy answers to prompts below the row threshold must be the exact engine's own, alone and while other prompts are read
beside them. Longer prompts are quantized, and there the three FP8 engines must say the same, with the last prompt token
quantized and with it exact. Engines that are compiled and engines that are not round differently, so answers may part
where the two likeliest tokens are a tie: within ``TIE`` in log probability, a step or two of BF16 logits. The eager
exact engine shows how often that happens anyway. ``OUT`` is written after every answer, so an end in the middle keeps
what came before it.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill_engines import EngineProcess, engine_arguments
from mixquant_agents.bench.shapes import SHAPES, write_model
from mixquant_agents.config import PrecisionPolicy

SHORT = (5, 40, 100, 120)
LONG = (200, 500, 1100, 2500)
ANSWER = 24
TIE = 0.13
THRESHOLD = 128
FAMILY = ("mixquant", "mixquant-piecewise", "mixquant-eager")
SIZES = {"cudagraph_capture_sizes": [1, 2, 4, 8, *range(16, 129, 16), 256, 512, 768, 1280, 2560]}
FULL: dict[str, Any] = {"compilation_config": SIZES}
PIECEWISE: dict[str, Any] = {"compilation_config": {**SIZES, "cudagraph_mode": "PIECEWISE"}}
EAGER: dict[str, Any] = {"enforce_eager": True, "compilation_config": {}}
NGRAM = {**FULL, "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}}
LORA = {**FULL, "enable_lora": True, "max_lora_rank": 64}
OLD = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
TWO = {**FULL, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
GROUPS: dict[str, dict[str, tuple[str, dict[str, Any], dict[str, str]]]] = {
    "graphs": {
        "exact": ("exact", FULL, {}),
        "mixquant": ("mixquant-fp8", FULL, {}),
        "mixquant-piecewise": ("mixquant-fp8", PIECEWISE, {}),
        "mixquant-eager": ("mixquant-fp8", EAGER, {}),
        "exact-eager": ("exact", EAGER, {}),
    },
    "formats": {"int8": ("mixquant-int8", FULL, {}), "nvfp4": ("mixquant-nvfp4", {"compilation_config": {}}, {})},
    "features": {
        "mixquant-v1": ("mixquant-fp8", FULL, OLD),
        "exact-ngram": ("exact", NGRAM, {}),
        "mixquant-ngram": ("mixquant-fp8", NGRAM, {}),
        "exact-lora": ("exact", LORA, {}),
        "mixquant-lora": ("mixquant-fp8", LORA, {}),
    },
    "parallel": {"exact-tp2": ("exact", TWO, {}), "mixquant-tp2": ("mixquant-fp8", TWO, {})},
}
PAIRS = {
    "mixquant": "exact", "mixquant-piecewise": "exact", "mixquant-eager": "exact", "exact-eager": "exact",
    "int8": "exact", "nvfp4": "exact", "mixquant-v1": "exact", "exact-ngram": "exact", "mixquant-ngram": "exact",
    "mixquant-lora": "exact-lora", "mixquant-tp2": "exact-tp2",
}  # fmt: skip
"""Whose answers to short prompts must be whose."""
ALIKE = {"mixquant-piecewise": "mixquant", "mixquant-eager": "mixquant", "mixquant-v1": "mixquant",
         "mixquant-ngram": "mixquant"}  # fmt: skip
"""Whose answers to every prompt must be whose."""
Answers = dict[int, tuple[list[int], list[float]]]


class Kept:
    """What is known so far, kept in the result file."""

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.started = time.monotonic()
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.answers: dict[str, Answers] = {
            name: {int(n): tuple(pair) for n, pair in each.items()} for name, each in stored.get("answers", {}).items()
        }
        self.notes: dict[str, Any] = stored.get("engines", {})
        self.model = model
        self._lock = threading.Lock()

    def note(self, name: str, **what: Any) -> None:
        with self._lock:
            self.notes.setdefault(name, {}).update(what)
            print(f"{time.monotonic() - self.started:6.1f} s  {name}: {str(what)[:200]}", flush=True)
            self.write()

    def add(self, name: str, found: Answers) -> None:
        with self._lock:
            self.answers[name] = found
        self.note(name, answered=len(found))

    def compared(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Each pair of which both have answered."""
        short = {f"{name}, short prompts": (name, other, SHORT) for name, other in PAIRS.items()}
        beside = {
            f"{n} beside others, short prompts": (f"{n} beside others", "exact", SHORT) for n in ("exact", *FAMILY)
        }
        every = {f"{name}, all prompts": (name, other, SHORT + LONG) for name, other in ALIKE.items()}
        last = {f"{n}, last exact": (f"{n} last exact", "mixquant last exact", LONG) for n in FAMILY[1:]}
        found = {}
        for label, (name, other, lengths) in {**short, **beside, **every, **last}.items():
            if name in self.answers and other in self.answers:
                found[f"{label}: as {other}"] = compared(self.answers[name], self.answers[other], lengths)
        return found

    def write(self) -> dict[str, list[int]]:
        """The file; returns the prompts on which two engines part although it was no tie."""
        agree = self.compared()
        failed = {pair: apart(each) for pair, each in agree.items() if apart(each)}
        result = {"model": self.model, "answer": ANSWER, "tie": TIE, "threshold": THRESHOLD, "failed": failed,
                  "agree": agree, "engines": self.notes, "answers": self.answers}  # fmt: skip
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(result, indent=1))
        scratch.replace(self.path)
        return failed


def compared(mine: Answers, theirs: Answers, lengths: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Per prompt: leading tokens that agree, and how clear ``theirs`` was where they part (None: they do not)."""
    found = {}
    for n in lengths:
        (tokens, _), (other, margins) = mine[n], theirs[n]
        at = next((i for i, (x, y) in enumerate(zip(tokens, other, strict=True)) if x != y), len(tokens))
        found[n] = {"same": at, "margin": round(margins[at], 3) if at < len(tokens) else None}
    return found


def apart(found: dict[int, dict[str, Any]]) -> list[int]:
    """Prompts on which two engines part although it was no tie."""
    return [n for n, row in found.items() if row["margin"] is not None and row["margin"] > TIE]


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


def start(group: str, path: Path, dummy: bool, logs: Path) -> dict[str, EngineProcess]:
    engines = {}
    for name, (column, change, env) in GROUPS[group].items():
        arguments = {**engine_arguments(column, path, 1.5, dummy), "max_model_len": 4096, **change}
        arguments["max_num_batched_tokens"] = 4096
        if "hf_overrides" in arguments:  # on a model this small measuring would keep every step exact
            arguments["hf_overrides"]["quantization_config"]["policy"]["row_threshold"] = THRESHOLD
        engines[name] = EngineProcess(name, arguments, logs / f"check-{name}.log", env=env)
        engines[name].go()
    return engines


def answered(
    engine: EngineProcess, prompts: dict[int, list[int]], company: list[list[int]] | None = None, lora: str = ""
) -> Answers:
    found = engine.ask(do="greedy", prompts=list(prompts.values()), answer=ANSWER, company=company, lora=lora)
    return dict(zip(prompts, zip(found["answers"], found["margins"], strict=True), strict=True))


def examine(name: str, engine: EngineProcess, prompts: dict[int, list[int]], kept: Kept, lora: str) -> None:
    """Ask one engine everything; whatever fails is noted and does not stop the others."""
    short = {n: tokens for n, tokens in prompts.items() if n <= THRESHOLD}
    longer = {n: tokens for n, tokens in prompts.items() if n > THRESHOLD}
    try:
        kept.note(name, ready=round(engine.wait_for("ready")["start_seconds"], 1))
        kept.add(name, answered(engine, prompts, lora=lora if name.endswith("lora") else ""))
        if name in ("exact", *FAMILY):
            # Short prompts are written exact also while others are read: in mixed steps, from a captured graph's slot.
            kept.add(f"{name} beside others", answered(engine, short, [longer[n] for n in longer if n > 250]))
        if name in FAMILY:
            fields = PrecisionPolicy.of("mixquant-fp8").model_dump(mode="json")
            engine.ask(do="policy", policy={**fields, "row_threshold": THRESHOLD, "exact_last_token": True})
            kept.add(f"{name} last exact", answered(engine, longer))
        kept.note(name, **engine.ask(do="status", plugin=not name.startswith("exact")))
    except Exception as error:
        kept.note(name, error=f"{type(error).__name__}: {error}")
    finally:
        engine.close()


def main(model: str, out: str, *rest: str) -> int:
    lora = rest[rest.index("--lora") + 1] if "--lora" in rest else ""
    groups = [word for word in rest if word in GROUPS] or ["graphs", "formats"]
    path = write_model(model, Path(tempfile.mkdtemp())) if model in SHAPES else Path(model)
    kept = Kept(Path(out), model)
    prompts = prompts_for(path)
    for group in groups:
        engines = start(group, path, model in SHAPES, Path(out).parent)
        with ThreadPoolExecutor(len(engines)) as pool:  # nothing is timed, so all processes start and answer at once
            jobs = [pool.submit(examine, name, engine, prompts, kept, lora) for name, engine in engines.items()]
            for job in jobs:
                job.result()
    failed = kept.write()
    for pair, each in kept.compared().items():
        told = {n: tuple(row.values()) for n, row in each.items() if row["margin"] is not None}
        print(f"{pair}: {len(each) - len(told)} of {len(each)} the same;", told)
    broken = [name for name, note in kept.notes.items() if "error" in note]
    print("parted without a tie:", failed, "did not run:", broken)
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
