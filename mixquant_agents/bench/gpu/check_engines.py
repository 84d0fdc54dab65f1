"""Do whole engines agree? ``python -m mixquant_agents.bench.gpu.check_engines MODEL OUT.json [GROUP…] [--lora FOLDER]``

``MODEL`` is a folder, or the name of a shape, which is then written with random weights. Groups of engines, all those
asked for at once on one GPU:

- ``graphs``: ``exact`` with graphs and eager; phase-aware FP8 with full and piecewise graphs, with piecewise graphs
  alone, with full graphs of small steps too, and eager.
- ``small-steps``: prompts read in chunks of at most 256 rows, each chunk on top of those before it: ``exact``, FP8, and
  FP8 with full graphs of small steps, which are then replayed for nearly every step, in all three modes.
- ``formats``: INT8; NVFP4, emulated where the device lacks it (it must become eager by itself).
- ``projections``: q in FP8, k in INT8, v exact, o in INT8, all else FP8 (with graphs, and eager); and NVFP4, emulated,
  with GPTQ's twins calibrated at load and q, k, v in FP8.
- ``features``: FP8 on vLLM's older runner; guessing tokens ahead by n-gram; with a LoRA adapter.
- ``draft``: FP8 whose twin drafts three tokens at a time, and ``exact``; answers to 500 more prompts of 8 to 60 tokens,
  many at once, must be the same, ties aside.
- ``reload``: FP8 started on weights with their rows in reverse order, which then loads the right ones into its captured
  graphs; it must read as the engine that started on them. Wants the group ``graphs``.
- ``nested``: FP8 within the exact weights, from the right weights and reloaded from reversed ones; and ``exact``. Exact
  products are summed in another order than cuBLAS's, so answers may part at ties, as those of eager engines do.
- ``nested-features``: the same with a LoRA adapter; with drafts by the twin, in every cycle; and one that slept before
  it was asked, which must read as one that never did.
- ``nested-parallel``: FP8 within the exact weights and ``exact``, on one GPU and as tensor-parallel ranks on two.
- ``parallel``: FP8 and exact, each on one GPU and on two, as tensor-parallel ranks and as pipeline stages; FP8 there
  also eager, and with thresholds measured at start.
- ``experts-parallel``: of a mixture, FP8 and exact, on one GPU, as tensor-parallel ranks on two, and with each rank
  holding its own experts.

Greedy answers to prompts below the row threshold must be the exact engine's own (an eager engine's those of the eager
exact one), alone and while other prompts are read beside them. Answers may part where the two likeliest tokens are a
tie: within ``TIE`` in log probability, a step or two of BF16 logits.

Longer prompts are quantized, and quantizing amplifies how kernels round: engines that are compiled or eager, with
attention split in one way or another, round differently. So what is compared there is the log probability of every
token of the prompt, and the measure is the format's own error: no two of the three FP8 engines may differ by more than
they differ from exact (root mean square, and its mean). On two GPUs products are summed in another order and twins have
scales of their own: FP8's distance from exact must be what it is on one GPU, within a tenth.

``OUT`` is written after every answer, so an end in the middle keeps what came before it.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.gpu.check_weights import disturbed, random_model
from mixquant_agents.bench.prefill.engines import SPAWN, EngineProcess, column_arguments
from mixquant_agents.bench.prefill.plan import NESTED
from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.files import write_whole
from mixquant_agents.precision.plan import Mode

SHORT = (5, 40, 100, 120)
LONG = (200, 500, 1100, 2500)
ANSWER = 24
TIE = 0.13
THRESHOLD = 128
FAMILY = ("mixquant", "mixquant-piecewise", "mixquant-eager")
SIZES = {"cudagraph_capture_sizes": [1, 2, 4, 8, *range(16, 129, 16), 256, 512, 768, 1280, 2560]}
FULL: dict[str, Any] = {"compilation_config": SIZES}
PIECEWISE: dict[str, Any] = {"compilation_config": {**SIZES, "cudagraph_mode": "PIECEWISE"}}
WHOLE: dict[str, Any] = {"compilation_config": {**SIZES, "cudagraph_mode": "FULL"}}
CHUNK = 256
CHUNK_SIZES = {"cudagraph_capture_sizes": [1, 2, 4, 8, *range(16, CHUNK + 1, 16)]}
CHUNKED: dict[str, Any] = {"compilation_config": CHUNK_SIZES, "max_num_batched_tokens": CHUNK}
CHUNKED_WHOLE = {**CHUNKED, "compilation_config": {**CHUNK_SIZES, "cudagraph_mode": "FULL"}}
EAGER: dict[str, Any] = {"enforce_eager": True, "compilation_config": {}}
NGRAM = {**FULL, "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}}
LORA: dict[str, Any] = {
    "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 512, 1280, 2560]},
    "enable_lora": True, "max_lora_rank": 64,
}  # fmt: skip
"""Of fewer sizes: each is captured with the adapter's kernels, too."""
OLD = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
TWO = {
    **FULL, "tensor_parallel_size": 2, "distributed_executor_backend": "mp", "disable_custom_all_reduce": True
}  # fmt: skip
EXPERTS = {**TWO, "enable_expert_parallel": True}
STAGES = {**FULL, "pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
PLAIN = {**SPAWN, "VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}
"""Sums over GPUs by NCCL alone, without multicast."""
GROUPS: dict[str, dict[str, tuple[str, dict[str, Any], dict[str, str]]]] = {
    "graphs": {
        "exact": ("exact", FULL, {}),
        "mixquant": ("mixquant-fp8", FULL, {}),
        "mixquant-piecewise": ("mixquant-fp8", PIECEWISE, {}),
        "mixquant-full": ("mixquant-fp8", WHOLE, {}),
        "mixquant-eager": ("mixquant-fp8", EAGER, {}),
        "exact-eager": ("exact", EAGER, {}),
    },
    "small-steps": {
        "exact-chunked": ("exact", CHUNKED, {}),
        "mixquant-chunked": ("mixquant-fp8", CHUNKED, {}),
        "mixquant-chunked-full": ("mixquant-fp8", CHUNKED_WHOLE, {}),
    },
    "formats": {"int8": ("mixquant-int8", FULL, {}), "nvfp4": ("mixquant-nvfp4", {"compilation_config": {}}, {})},
    "projections": {
        "exact": ("exact", FULL, {}),
        "exact-eager": ("exact", EAGER, {}),
        "projections": ("mixquant-fp8", FULL, {}),
        "projections-eager": ("mixquant-fp8", EAGER, {}),
        "calibrated": ("mixquant-nvfp4", {"compilation_config": {}}, {}),
    },
    "features": {
        "mixquant-v1": ("mixquant-fp8", FULL, OLD),
        "exact-ngram": ("exact", NGRAM, {}),
        "mixquant-ngram": ("mixquant-fp8", NGRAM, {}),
        "exact-lora": ("exact", LORA, {}),
        "mixquant-lora": ("mixquant-fp8", LORA, {}),
    },
    "draft": {"exact": ("exact", FULL, {}), "mixquant-draft": ("mixquant-fp8", FULL, {})},
    "reload": {"mixquant-reloaded": ("mixquant-fp8", FULL, {})},
    "nested": {
        "exact": ("exact", FULL, {}),
        "nested": (NESTED, FULL, {}),
        "nested-reloaded": (NESTED, FULL, {}),
    },
    "nested-features": {
        "exact": ("exact", FULL, {}),
        "nested": (NESTED, FULL, {}),
        "exact-lora": ("exact", LORA, {}),
        "nested-lora": (NESTED, LORA, {}),
        "nested-draft": (NESTED, FULL, {}),
        "nested-slept": (NESTED, {**FULL, "enable_sleep_mode": True}, {}),
    },
    "nested-parallel": {
        "exact": ("exact", FULL, {}),
        "nested": (NESTED, FULL, {}),
        "exact-tp2": ("exact", TWO, PLAIN),
        "nested-tp2": (NESTED, TWO, PLAIN),
    },
    "parallel": {
        "exact": ("exact", FULL, {}),
        "mixquant": ("mixquant-fp8", FULL, {}),
        "exact-tp2": ("exact", TWO, PLAIN),
        "mixquant-tp2": ("mixquant-fp8", TWO, PLAIN),
        "mixquant-tp2-eager": ("mixquant-fp8", {**TWO, **EAGER}, PLAIN),
        "mixquant-tp2-auto": ("mixquant-fp8", TWO, PLAIN),
        "exact-pp2": ("exact", STAGES, PLAIN),
        "mixquant-pp2": ("mixquant-fp8", STAGES, PLAIN),
    },
    "experts-parallel": {
        "exact": ("exact", FULL, {}),
        "mixquant": ("mixquant-fp8", FULL, {}),
        "exact-tp2": ("exact", TWO, PLAIN),
        "mixquant-tp2": ("mixquant-fp8", TWO, PLAIN),
        "exact-ep2": ("exact", EXPERTS, PLAIN),
        "mixquant-ep2": ("mixquant-fp8", EXPERTS, PLAIN),
    },
}
_BY_PROJECTION = {"formats": {"k_proj": "int8", "v_proj": "exact", "o_proj": "int8"}}
POLICIES: dict[str, dict[str, Any]] = {
    "projections": _BY_PROJECTION,
    "projections-eager": _BY_PROJECTION,
    "calibrated": {"formats": {"qkv_proj": "fp8"}, "weight_rounding": "gptq", "calibration": "auto"},
    "mixquant-draft": {"draft": "twin", "draft_ngram": True},
    "nested-draft": {"draft": "twin"},
}
"""What some engines' policies say beside their column's."""
FORCED = {"mixquant-draft": 3, "nested-draft": 3}
"""Tokens that some engines draft in every cycle, whether it pays or not; one whose drafts were never right, fails."""
WHOLE_STEPS = ("mixquant-chunked-full",)
"""Engines whose small steps are to replay full graphs in all three modes."""
PAIRS = {
    "projections": "exact", "projections-eager": "exact-eager", "calibrated": "exact-eager",
    "mixquant": "exact", "mixquant-piecewise": "exact", "mixquant-full": "exact", "mixquant-eager": "exact-eager",
    "int8": "exact", "nvfp4": "exact-eager", "mixquant-v1": "exact", "exact-ngram": "exact", "mixquant-ngram": "exact",
    "mixquant-chunked": "exact-chunked", "mixquant-chunked-full": "exact-chunked",
    "nested": "exact", "nested-reloaded": "nested", "nested-lora": "exact-lora", "nested-draft": "nested",
    "nested-slept": "nested", "nested-tp2": "exact-tp2",
    "mixquant-lora": "exact-lora", "mixquant-reloaded": "exact", "mixquant-draft": "exact", "exact-tp2": "exact",
    "mixquant-tp2": "exact-tp2",
    "exact-ep2": "exact", "mixquant-ep2": "exact-ep2",
    "mixquant-tp2-auto": "exact-tp2", "mixquant-tp2-eager": "exact-tp2", "exact-pp2": "exact", "mixquant-pp2": "exact",
}  # fmt: skip
"""Whose answers to short prompts must be whose."""
ALIKE = (*FAMILY, "mixquant-full", "mixquant-v1", "mixquant-reloaded", "mixquant-pp2")
"""FP8 engines that sum in one order; ranks sum in another."""
BY_PROJECTION = ("projections", "projections-eager")
"""So do these."""
ALIKE_CHUNKED = ("mixquant-chunked", "mixquant-chunked-full")
"""And these, whose exact engine is ``exact-chunked``."""
SAME_NESTED = ("nested", "nested-reloaded", "nested-slept")
"""These compute the same."""
BESIDE = (
    "exact",
    *FAMILY,
    "mixquant-full",
    "exact-chunked",
    *ALIKE_CHUNKED,
    "nested",
    "nested-draft",
    "nested-slept",
    "nested-tp2",
    "projections",
    "mixquant-draft",
    "mixquant-tp2",
    "mixquant-ep2",
    "mixquant-pp2",
)
"""Engines that also answer short prompts while others are read: in mixed steps, from a captured graph's slot."""
MANY = ("exact", "mixquant-draft")
"""Engines of the group ``draft``, which also answer :data:`MANY_PROMPTS` short prompts, eight at a time."""
MANY_PROMPTS = 500
SCORED = (
    "exact", "exact-eager", *ALIKE, *BY_PROJECTION, *SAME_NESTED, "exact-chunked", *ALIKE_CHUNKED, "nested-tp2", "int8",
    "nvfp4", "calibrated", "exact-tp2", "mixquant-tp2", "exact-ep2", "mixquant-ep2",
)  # fmt: skip
"""Engines whose reading of long prompts is compared, token by token."""
Answers = dict[int, tuple[list[int], list[float]]]


class Outcome:
    """What the engines have answered so far; written to the result file after each answer."""

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.started = time.monotonic()
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.answers: dict[str, Answers] = {
            name: {int(n): tuple(pair) for n, pair in each.items()} for name, each in stored.get("answers", {}).items()
        }
        self.scores: dict[str, list[list[float]]] = stored.get("scores", {})
        self.notes: dict[str, Any] = stored.get("engines", {})
        self.model = model
        self.lock = threading.Lock()

    def note(self, name: str, **what: Any) -> None:
        with self.lock:
            self.notes.setdefault(name, {}).update(what)
            print(f"{time.monotonic() - self.started:6.1f} s  {name}: {str(what)[:200]}", flush=True)
            self.write()

    def add(self, name: str, answers: Answers) -> None:
        with self.lock:
            self.answers[name] = answers
        self.note(name, answered=len(answers))

    def compared(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Each pair of which both have answered."""
        short = {f"{name}, as {other}": (name, other) for name, other in PAIRS.items()}
        others = {name: PAIRS.get(name, name) for name in BESIDE}
        beside = {f"{name} beside others, as {other}": (f"{name} beside others", other)
                  for name, other in others.items()}  # fmt: skip
        compared_with = {
            label: compared(self.answers[name], self.answers[other], SHORT)
            for label, (name, other) in {**short, **beside}.items()
            if name in self.answers and other in self.answers
        }
        answers, reference = (self.answers.get(f"{name} many") for name in reversed(MANY))
        if answers and reference:
            compared_with["mixquant-draft, many short prompts"] = compared(answers, reference, tuple(reference))
        return compared_with

    def differences(self) -> dict[str, dict[str, dict[str, float]]]:
        """Root mean square and mean of the difference in log probability, of each two engines."""
        names = [name for name in SCORED if name in self.scores]
        return {a: {b: difference(self.scores[a], self.scores[b]) for b in names if b != a} for a in names}

    def write(self) -> dict[str, list[int]]:
        """The file; returns the prompts on which two engines part although it was no tie."""
        agree = self.compared()
        failed = {pair: parted(each) for pair, each in agree.items() if parted(each)}
        read = self.differences()
        failed |= {f"{pair}, long prompts": list(LONG) for pair in unlike_pairs(read)}
        result = {"model": self.model, "answer": ANSWER, "tie": TIE, "threshold": THRESHOLD, "failed": failed,
                  "agree": agree, "long_prompts": read, "engines": self.notes, "answers": self.answers,
                  "scores": self.scores}  # fmt: skip
        write_whole(self.path, json.dumps(result, indent=1))
        return failed


def compared(answers: Answers, reference: Answers, lengths: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Per prompt: leading tokens that agree, and how clear ``theirs`` was where they part (None: they do not)."""
    rows = {}
    for n in lengths:
        (tokens, _), (other, margins) = answers[n], reference[n]
        at = next((i for i, (x, y) in enumerate(zip(tokens, other, strict=True)) if x != y), len(tokens))
        rows[n] = {"same": at, "margin": round(margins[at], 3) if at < len(tokens) else None}
    return rows


def difference(first: list[list[float]], second: list[list[float]]) -> dict[str, float]:
    """Of two engines' log probabilities."""
    apart = np.concatenate([np.asarray(x) - np.asarray(y) for x, y in zip(first, second, strict=True)])
    return {"rms": round(float(np.sqrt((apart**2).mean())), 4), "mean": round(float(apart.mean()), 5)}


def unlike_pairs(read: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Pairs of FP8 engines that differ by more than the format does, which is how far they are from exact.

    Also two GPUs where the format costs more than on one, or exact engines differ by half of what it costs.
    """
    unlike = []
    families = (
        (SAME_NESTED, "exact"), (BY_PROJECTION, "exact"), (ALIKE_CHUNKED, "exact-chunked"), (ALIKE, "exact")
    )  # fmt: skip
    for alike, exact in families:
        family = [name for name in alike if name in read]
        own = min((read[name][exact]["rms"] for name in family if exact in read[name]), default=float("inf"))
        pairs = [(a, b) for a in family for b in family if a < b]
        unlike += [
            f"{a} and {b}" for a, b in pairs if read[a][b]["rms"] > 1.1 * own or abs(read[a][b]["mean"]) > 0.1 * own
        ]
    for ranks in ("tp2", "ep2"):
        two = read.get(f"exact-{ranks}", {})
        if f"mixquant-{ranks}" in two and two[f"mixquant-{ranks}"]["rms"] > 1.1 * own:
            unlike.append(f"mixquant-{ranks} and exact-{ranks}")
        if "exact" in two and two["exact"]["rms"] > 0.5 * own:
            unlike.append(f"exact-{ranks} and exact")
    return unlike


def parted(rows: dict[int, dict[str, Any]]) -> list[int]:
    """Prompts on which two engines part although it was no tie."""
    return [n for n, row in rows.items() if row["margin"] is not None and row["margin"] > TIE]


def prompts_for(path: Path) -> dict[int, list[int]]:
    """Pieces of this package's source where the model has a tokenizer, else random tokens."""
    random = np.random.default_rng(3)
    if not (path / "tokenizer.json").exists():
        limit = json.loads((path / "config.json").read_text())["vocab_size"] - 1
        return {n: random.integers(100, limit, size=n).tolist() for n in (*SHORT, *LONG)}
    from tokenizers import Tokenizer

    text = "\n".join(file.read_text() for file in sorted(Path(__file__).parents[2].rglob("*.py")))
    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    starts = random.integers(0, len(ids) - max(LONG), size=len(SHORT) + len(LONG))
    return {n: ids[start : start + n] for n, start in zip((*SHORT, *LONG), starts.tolist(), strict=True)}


def many_prompts(path: Path) -> dict[int, list[int]]:
    """Short pieces of the text of :func:`prompts_for`, by number."""
    source = [token for tokens in prompts_for(path).values() for token in tokens]
    random = np.random.default_rng(5)
    lengths = random.integers(8, 61, size=MANY_PROMPTS).tolist()
    starts = random.integers(0, len(source) - 61, size=MANY_PROMPTS).tolist()
    return {number: source[at : at + n] for number, (at, n) in enumerate(zip(starts, lengths, strict=True))}


def has_experts(path: Path) -> bool:
    return bool(json.loads((path / "config.json").read_text()).get("num_experts"))


def start(groups: list[str], path: Path, logs: Path) -> dict[str, EngineProcess]:
    engines = {}
    specs = {name: each for group in groups for name, each in GROUPS[group].items()}
    for name, (column, change, env) in specs.items():
        model = disturbed(path, logs) if name.endswith("reloaded") else path
        arguments = {**column_arguments(column, model, 1.5, dummy=False), "max_model_len": 4096, **change}
        arguments["max_num_batched_tokens"] = change.get("max_num_batched_tokens", 4096)
        if "hf_overrides" in arguments and not name.endswith("auto"):  # on a model this small all steps would be exact
            arguments["hf_overrides"]["quantization_config"]["policy"]["row_threshold"] = THRESHOLD
        if name in POLICIES:
            policy = arguments["hf_overrides"]["quantization_config"]["policy"]
            changed = PrecisionPolicy.model_validate({**policy, **POLICIES[name]})
            arguments["hf_overrides"]["quantization_config"]["policy"] = changed.model_dump(mode="json")
        if name == "mixquant-lora" and has_experts(path):  # such experts have no twins: refused by name
            arguments["hf_overrides"]["quantization_config"]["policy"]["ignored_layers"] = ["re:.*experts"]
        engines[name] = EngineProcess(name, arguments, logs / f"check-{name}.log", env=env)
        engines[name].go()
    return engines


def answered(
    engine: EngineProcess,
    prompts: dict[int, list[int]],
    company: list[list[int]] | None = None,
    lora: str = "",
    at_once: int = 1,
) -> Answers:
    result = engine.ask(
        do="greedy", prompts=list(prompts.values()), answer=ANSWER, company=company, lora=lora, at_once=at_once
    )
    return dict(zip(prompts, zip(result["answers"], result["margins"], strict=True), strict=True))


def examine(
    name: str,
    engine: EngineProcess,
    prompts: dict[int, list[int]],
    outcome: Outcome,
    lora: str,
    path: Path,
    many: dict[int, list[int]],
) -> None:
    """Ask one engine everything; whatever fails is noted and does not stop the others. ``many`` are the prompts for
    :data:`MANY`, none where their group is not asked for."""
    short = {n: tokens for n, tokens in prompts.items() if n <= THRESHOLD}
    longer = {n: tokens for n, tokens in prompts.items() if n > THRESHOLD}
    try:
        outcome.note(name, ready=round(engine.wait_for("ready")["start_seconds"], 1))
        before: list[list[float]] = []
        if name.endswith("reloaded"):
            before = engine.ask(do="score", prompts=list(longer.values()))["logprobs"]
            outcome.note(name, reloaded=engine.ask(do="reload", path=str(path)))
        if name.endswith("slept"):
            outcome.note(name, slept=engine.ask(do="sleep"))
        if name in FORCED:
            engine.ask(do="drafts", count=FORCED[name])
        outcome.add(name, answered(engine, prompts, lora=lora if name.endswith("lora") else ""))
        if name in BESIDE:
            company = [longer[n][::-1] for n in longer if n > 250]  # backwards, since the prefix cache knows the others
            outcome.add(f"{name} beside others", answered(engine, short, company))
        if name in MANY and many:
            outcome.add(f"{name} many", answered(engine, many, at_once=8))
        if name in SCORED:
            scores = engine.ask(do="score", prompts=list(longer.values()))["logprobs"]
            with outcome.lock:
                outcome.scores[name] = scores
            if before:
                outcome.note(name, moved=difference(before, scores))
        if name in FAMILY:
            fields = PrecisionPolicy.of("mixquant-fp8").model_dump(mode="json")
            engine.ask(do="policy", policy={**fields, "row_threshold": THRESHOLD, "exact_last_token": True})
            outcome.add(f"{name} last exact", answered(engine, longer))
        status = engine.ask(do="status", plugin=not name.startswith("exact"))
        outcome.note(name, **status)
        replayed = status.get("plugin", {}).get("gpu", {}).get("full_graph_steps", {})
        if name in WHOLE_STEPS and not all(replayed.get(mode.value) for mode in Mode):
            outcome.note(name, error=f"was to replay full graphs of small steps in every mode, but did {replayed}")
        if name in FORCED and not status.get("drafts", {}).get("accepted"):
            outcome.note(
                name, error=f"was to draft and have drafts accepted, but its counts are {status.get('drafts')}"
            )
    except Exception as error:
        outcome.note(name, error=f"{type(error).__name__}: {error}")
    finally:
        engine.close()


def main(arguments: list[str] | None = None) -> int:
    """Start the engines, ask them all, compare; 1 where some part without a tie or did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder, or the name of a shape")
    parser.add_argument("out", type=Path, help="result file; an existing one is added to")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: graphs formats")
    parser.add_argument("--lora", default="", help="folder of a LoRA adapter, for the group features")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.groups if name not in GROUPS]:
        parser.error(f"no group {unknown[0]!r}; choose among {', '.join(GROUPS)}")
    groups, model = options.groups or ["graphs", "formats"], options.model
    path = random_model(model, Path(tempfile.mkdtemp())) if model in SHAPES else Path(model)
    if not (path / "config.json").is_file():
        parser.error(f"no model folder {model!r}, and no shape of that name ({', '.join(SHAPES)})")
    outcome = Outcome(options.out, model)
    prompts = prompts_for(path)
    many = many_prompts(path) if "draft" in groups else {}
    engines = start(groups, path, options.out.parent)
    with ThreadPoolExecutor(len(engines)) as pool:  # nothing is timed, so all processes start and answer at once
        jobs = [
            pool.submit(examine, name, engine, prompts, outcome, options.lora, path, many)
            for name, engine in engines.items()
        ]
        for job in jobs:
            job.result()
    failed = outcome.write()
    for pair, each in outcome.compared().items():
        ties = {n: tuple(row.values()) for n, row in each.items() if row["margin"] is not None}
        print(f"{pair}: {len(each) - len(ties)} of {len(each)} the same;", ties)
    for name, others in outcome.differences().items():
        print(name, "reads long prompts unlike", {other: tuple(value.values()) for other, value in others.items()})
    broken = [name for name, note in outcome.notes.items() if "error" in note]
    print("parted without a tie:", failed, "did not run:", broken)
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
