"""What drafting by the twin gains: ``… -m mixquant_agents.bench.gpu.writing OUT.json [SECONDS [DRAFTS [STORAGES]]]``.

Engines of the Qwen3-8B shape with random weights take turns on one GPU: ``exact``, and ``twin``, phase-aware FP8 that
drafts a number of tokens a cycle, each of ``DRAFTS`` in turn (``0,1,2,3,4``). ``STORAGES`` (``separate``) may name
``nested``: an engine whose exact weights hold their twin, with the columns ``nested/0`` and so on.

Which drafts are right is drawn (vLLM's ``synthetic`` acceptance), each with probability 0.95, so that a cycle costs and
yields what it would with a real model of that acceptance. A case is a number of writing requests and the tokens each
has in its KV cache; within a round each case runs on every column.

Milliseconds per token and request are the time between the steps at which all requests had written eight tokens and at
which the first was done, by the tokens written in between. ``split`` says how long the verified step and the drafts
take on the GPU, ``kernels`` what they consist of.
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
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments, start_in_order
from mixquant_agents.bench.prefill.stats import ratio_interval
from mixquant_agents.bench.prefill.worker import Session
from mixquant_agents.bench.prefill.worker import main as serve
from mixquant_agents.bench.shapes import write_model
from mixquant_agents.config import NumberFormat, PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments
from mixquant_agents.files import write_whole

ACCEPTANCE = 0.95
MOST = 4
CASES = {"1": (1, 128), "8": (8, 128), "32": (32, 128), "64k": (8, 8064)}
"""``(requests, tokens that each has read)``."""
ROWS = (1, 2, 3, 4, 5, 8, 16, 24, 32, 40, 64, 96, 128, 160)
READING = (256, 512, 1024, 2048)
KV_GIB = 14.0
SERVE = (sys.executable, "-m", "mixquant_agents.bench.gpu.writing", "--serve")
DRAFTS = tuple(range(MOST + 1))
Storage = Literal["separate", "nested"]
ENGINES: dict[str, Storage] = {"twin": "separate", "nested": "nested"}
"""Drafting engines and how they hold their weights."""


def twin_arguments(
    model: Path,
    drafts: Sequence[int] = DRAFTS,
    storage: Storage = "separate",
    draft: Literal["twin", "auto"] = "twin",
    acceptance: float = ACCEPTANCE,
) -> dict[str, Any]:
    """vLLM's arguments for the drafting engine: each number of drafts has graphs of its own."""
    policy = PrecisionPolicy(prefill_format=NumberFormat.FP8, draft=draft, draft_ngram=False, storage=storage)
    max_drafts = max(drafts)
    return {
        **policy_arguments(policy),
        "async_scheduling": True,
        "speculative_config": {
            "method": "draft_model",
            "model": str(model),
            "num_speculative_tokens": max_drafts,
            "draft_sample_method": "probabilistic",
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": [acceptance ** (index + 1) for index in range(max_drafts)],
            "num_speculative_tokens_per_batch_size": [
                (batch + 1, batch + 1 if batch + 1 < len(drafts) else 64, count) for batch, count in enumerate(drafts)
            ],
        },
    }


def arguments(column: str, model: Path, drafts: Sequence[int] = DRAFTS) -> dict[str, Any]:
    """vLLM's arguments for one of the engines: ``exact``, or the storage of a drafting one."""
    values = column_arguments("exact", model, KV_GIB, True) | {"max_model_len": 11_000}
    values["compilation_config"] = {"cudagraph_capture_sizes": [*ROWS, *READING]}
    return values if column == "exact" else values | twin_arguments(model, drafts, ENGINES[column])


class WritingSession(Session):
    """Also writes with a fixed number of drafts, and tells where a cycle's time goes."""

    def write(self, batch: int, known: int, tokens: int, drafts: int | None = None) -> dict[str, Any]:
        """Milliseconds per token and request while ``batch`` requests write; see the module."""
        if drafts is not None:
            self.drafts(drafts)
        names = [self._add(self._tokens(known, 100 + seed), tokens) for seed in range(batch)]
        written = dict.fromkeys(names, 0)
        started, before, steps = 0.0, 0, 0
        while True:
            outputs = self.engine.step()
            now = time.perf_counter()
            done = False
            for output in outputs:
                name = output.request_id if output.request_id in written else output.request_id.rsplit("-", 1)[0]
                written[name] += len(output.outputs[0].token_ids)
                done = done or output.finished
            if started:
                steps += bool(outputs)
            elif min(written.values()) >= 8:
                started, before = now, sum(written.values())
            if done:
                break
        self.engine.abort_request([name for name in names if written[name] < tokens])
        for _ in self._run():
            pass
        count = sum(written.values()) - before
        return {"ms": (now - started) * 1e3 * batch / count, "tokens_per_step": count / batch / max(steps, 1)}

    def split(self, batch: int, known: int, drafts: int) -> dict[str, Any]:
        """Milliseconds on the GPU of the verified step, of its sampling, and of the drafts: medians of 20 cycles."""
        import torch

        runners: list[Any] = []
        self.engine.collective_rpc(_runner, args=(runners,))
        runner = runners[0]
        marks: list[list[Any]] = []

        def mark() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event

        execute, propose = runner.execute_model, runner.speculator.propose

        def execute_model(*args: Any, **kwargs: Any) -> Any:
            start = mark()
            result = execute(*args, **kwargs)
            marks.append([start, mark()])
            return result

        def proposed(*args: Any, **kwargs: Any) -> Any:
            start = mark()
            result = propose(*args, **kwargs)
            marks[-1] += [start, mark()]
            return result

        runner.execute_model, runner.speculator.propose = execute_model, proposed
        try:
            self.write(batch, known, 24 * (drafts + 1), drafts)
        finally:
            runner.execute_model, runner.speculator.propose = execute, propose
        torch.cuda.synchronize()
        cycles = [each for each in marks if len(each) == 4][6:]
        parts = [
            [a.elapsed_time(b), b.elapsed_time(c), c.elapsed_time(d), a.elapsed_time(after[0])]
            for (a, b, c, d), after in pairwise(cycles[:-1])
        ]
        names = ("verify_ms", "sample_ms", "draft_ms", "cycle_ms")
        return {name: round(statistics.median(part[i] for part in parts), 3) for i, name in enumerate(names)}

    def kernels(self, batch: int, known: int, drafts: int) -> dict[str, Any]:
        """Microseconds a cycle by kernel, the largest 40, and how often each ran; by PyTorch's profiler."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        cycles = 16
        self.drafts(drafts)
        for seed in range(batch):
            self._add(self._tokens(known, 100 + seed), (drafts + 1) * (cycles + 24))
        for _ in range(12):
            self.engine.step()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(cycles):
                self.engine.step()
            torch.cuda.synchronize()
        for _ in self._run():
            pass
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
        return {
            row.key[:120]: [round(row.self_device_time_total / cycles, 1), round(row.count / cycles, 1)]
            for row in rows[:40]
        }

    def turn(self, cached: int, new: int, tokens: int, drafts: bool) -> dict[str, Any]:
        """Milliseconds of an agent's turn on an engine of its own: ``cached`` tokens known, ``new`` ones, an answer."""
        if drafts:
            self.drafts(None)
        prefix = self._tokens(cached, 99)
        self._add([*prefix, *self._tokens(16)], 1)
        for _ in self._run():
            pass
        prompt = [*prefix, *self._tokens(new)]
        started = time.perf_counter()
        self._add(prompt, tokens)
        first = 0.0
        for instant, _ in self._run():
            first = first or instant
        ended = time.perf_counter()
        return {"ms": (ended - started) * 1e3, "ttft_ms": (first - started) * 1e3}


def _runner(worker: Any, runners: list[Any]) -> None:
    """Hand out the model runner of vLLM's ``worker``, in this process."""
    runners.append(worker.model_runner)


def start(folder: Path, logs: Path, drafts: Sequence[int], drafting: Sequence[str]) -> dict[str, EngineProcess]:
    model = write_model("qwen3-8b", folder)
    engines = {
        name: EngineProcess(name, arguments(name, model, drafts), logs / f"draft-{name}.log", SERVE)
        for name in (*drafting, "exact")
    }
    start_in_order(engines, ENGINES, functools.partial(print, flush=True))
    return engines


def column_of(engine: str, drafts: int) -> str:
    """The column of ``drafts`` tokens a cycle on a drafting engine."""
    return str(drafts) if engine == "twin" else f"{engine}/{drafts}"


def ask(engines: dict[str, EngineProcess], column: str, case: str, tokens: int) -> dict[str, Any]:
    batch, known = CASES[case]
    if column == "exact":
        return engines["exact"].ask(do="write", batch=batch, known=known, tokens=tokens)
    engine, _, count = column.rpartition("/")
    drafts = int(count)
    return engines[engine or "twin"].ask(
        do="write", batch=batch, known=known, tokens=tokens * (1 + drafts), drafts=drafts
    )


def turn(engines: dict[str, EngineProcess], name: str, tokens: int) -> dict[str, Any]:
    """An agent's turn on one of the engines, which drafts as its policy's rule says."""
    return engines[name].ask(do="turn", cached=8192, new=2048, tokens=tokens, drafts=name in ENGINES)


def summary(rounds: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Ratios of the time per token over ``exact`` by case and number of drafts, smaller is better."""
    result: dict[str, Any] = {}
    for case, columns in rounds.items():
        exact = [each["ms"] for each in columns["exact"]]
        result[case] = {"exact_ms": round(statistics.median(exact), 3)}
        for column, values in columns.items():
            if column == "exact" or len(values) < 2:
                continue
            ratios = [value["ms"] / base for value, base in zip(values, exact, strict=False)]
            result[case][column] = {
                "ms": round(statistics.median(value["ms"] for value in values), 3),
                "tokens_per_step": round(statistics.median(value["tokens_per_step"] for value in values), 3),
                "ratio": {name: round(value, 4) for name, value in ratio_interval(ratios).items()},
            }
    return result


def main(out: str, seconds: str = "80", counts: str = "0,1,2,3,4", storages: str = "separate") -> None:
    drafts = [int(count) for count in counts.split(",")]
    drafting = [name for name, storage in ENGINES.items() if storage in storages.split(",")]
    columns = ["exact", *(column_of(name, count) for name in drafting for count in drafts)]
    engines = start(Path(tempfile.mkdtemp()), Path(tempfile.gettempdir()), drafts, drafting)
    command = f"python -m mixquant_agents.bench.gpu.writing {Path(out).name} {seconds} {counts} {storages}"
    result: dict[str, Any] = {"command": command}
    for name in engines:
        turn(engines, name, 60)
    result["status"] = {name: engine.ask(do="status", plugin=name in ENGINES) for name, engine in engines.items()}
    result["device"] = result["status"]["exact"]["device"]
    for case in CASES:  # first runs fill caches
        for column in columns:
            ask(engines, column, case, 16)
    until = time.monotonic() + float(seconds)
    result["split"] = {}
    for case, (batch, known) in CASES.items():
        for name in drafting:
            split = engines[name].ask(do="split", batch=batch, known=known, drafts=drafts[-1])
            result["split"][f"{case}/{column_of(name, drafts[-1])}"] = split
            print(case, name, drafts[-1], split, flush=True)
    rounds: dict[str, dict[str, list[Any]]] = {case: {column: [] for column in columns} for case in CASES}
    count = 0
    turns: dict[str, list[Any]] = {name: [] for name in ("exact", *drafting)}
    while count < 2 or time.monotonic() < until:
        for case in CASES:
            for index in range(len(columns)):
                column = columns[(index + count) % len(columns)]
                rounds[case][column].append(ask(engines, column, case, 32))
        for name in (tuple(turns), tuple(reversed(turns)))[count % 2]:
            turns[name].append(turn(engines, name, 500))
        count += 1
    result["turn"] = {"raw": turns}
    for name in drafting:
        ratios = [
            drafting_turn["ms"] / exact_turn["ms"]
            for drafting_turn, exact_turn in zip(turns[name], turns["exact"], strict=True)
        ]
        result["turn"]["ratio" if name == drafting[0] else f"{name}_ratio"] = ratio_interval(ratios)
        print("turn", name, ratio_interval(ratios), turns["exact"][0], turns[name][0], flush=True)
    result |= {"rounds": count, "acceptance": ACCEPTANCE, "cases": summary(rounds), "raw": rounds}
    for case, columns in result["cases"].items():
        print(case, json.dumps(columns), flush=True)
    write_whole(Path(out), json.dumps(result))
    result["kernels"] = {
        f"{case}/{column_of(name, count)}": engines[name].ask(
            do="kernels", batch=CASES[case][0], known=CASES[case][1], drafts=count
        )
        for name in drafting
        for case, count in (("1", drafts[0]), ("1", drafts[-1]), ("32", drafts[-1]))
    }
    write_whole(Path(out), json.dumps(result))
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(WritingSession)
    else:
        main(*sys.argv[1:5])
