"""Where the time of small steps goes: ``python -m mixquant_agents.bench.gpu.small_steps OUT.json [SECONDS]``.

On a GPU with 80 GB three engines of the Qwen3-8B shape take turns of a few requests each: ``exact``; ``ours``
(phase-aware FP8, thresholds as measured); ``fused`` (the same, norms fused with quantization from 17 rows on).
``ours128`` is ``ours`` told to keep steps of up to 128 rows exact: on such steps it does what ``exact`` does, so what
lies between the two is the plugin's part of the host's time, and what lies between ``ours128`` and ``ours`` is what
quantizing gains.

Each request gives milliseconds ``[asking, executing, on the GPU, total]``: adding the request; the runner's
``execute_model``, which only launches; from its first to its last kernel; until the first token is back. First the
threads run where the kernel puts them, then all main threads on one core and all others on a few: that shows what
their placement does.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mixquant_agents.bench.gpu.timing import StepTime, time_steps
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments
from mixquant_agents.bench.prefill.stats import ratio_interval
from mixquant_agents.bench.prefill.worker import Session
from mixquant_agents.bench.prefill.worker import main as serve
from mixquant_agents.bench.shapes import write_model
from mixquant_agents.config import PrecisionPolicy

CASES = [(n, 0) for n in (16, 32, 64, 128, 256, 512)] + [(n, 8192) for n in (64, 128, 256, 512, 1024)]
COLUMNS = {"exact": "exact", "ours128": "ours", "ours": "ours", "fused": "fused"}
SETTINGS: dict[str, dict[str, int]] = {"exact": {}, "ours": {}, "fused": {"fuse_from": 17}}
KV_GIB = 1.7
SERVE = (sys.executable, "-m", "mixquant_agents.bench.gpu.small_steps", "--serve")


class TimedSession(Session):
    """Also tells where a request's time went; experiments change the plugin's constants before the engine starts."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        settings = arguments.pop("settings", {})
        if "fuse_from" in settings:
            from mixquant_agents.quant.vllm import config_hooks as engine_config
            from mixquant_agents.quant.vllm import graph_hooks as install

            install.FUSE_FROM = settings["fuse_from"]  # type: ignore[attr-defined] # it reads its own copy of the name
            engine_config.FUSE_BOUNDARY = settings["fuse_from"] - 1
        super().__init__(arguments)
        self._steps: list[StepTime] = []
        self.engine.collective_rpc(time_steps, args=(self._steps,))

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


def start(folder: Path, logs: Path) -> dict[str, EngineProcess]:
    model = write_model("qwen3-8b", folder)
    engines = {}
    for name, settings in SETTINGS.items():
        arguments = column_arguments("exact" if name == "exact" else "mixquant-fp8", model, KV_GIB, True)
        arguments |= {"max_model_len": 10_500, "settings": settings}
        if settings:
            arguments["additional_config"] = {**arguments["additional_config"], "experiment": json.dumps(settings)}
        engines[name] = EngineProcess(name, arguments, logs / f"{name}.log", SERVE)
    for name, engine in engines.items():
        engine.go()
        if name != "exact":
            print(name, engine.wait_for("measured", "ready").get("text"), flush=True)
    for name, engine in engines.items():
        print(name, f"ready after {engine.wait_for('ready')['start_seconds']:.0f} s", flush=True)
    return engines


def policy(column: str) -> dict[str, Any]:
    fields = PrecisionPolicy.of("mixquant-fp8").model_dump(mode="json")
    return {**fields, "row_threshold": 128} if column == "ours128" else fields


def turns(engines: dict[str, EngineProcess], cases: list[tuple[int, int]], count: int, until: float) -> dict[str, Any]:
    results: dict[str, dict[str, list[Any]]] = {}
    for tokens, cached in cases:
        name = f"warm_{cached}_{tokens}" if cached else f"cold_{tokens}"
        rows: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        for turn in range(count):
            order = list(COLUMNS)
            for column in [*order[turn % len(order) :], *order[: turn % len(order)]]:
                engine = engines[COLUMNS[column]]
                if COLUMNS[column] == "ours":
                    engine.ask(do="policy", policy=policy(column))
                rows[column].append(engine.ask(do="split", tokens=tokens, cached=cached, repeats=3)["ms"])
        results[name] = rows
        print(name, *summary(rows), sep="\n  ", flush=True)
        if time.monotonic() > until:
            break
    return results


def summary(rows: dict[str, list[Any]]) -> list[str]:
    lines = []
    medians = {column: [statistics.median(r[3] for r in turn) for turn in each] for column, each in rows.items()}
    for column, each in rows.items():
        parts = [statistics.median(r[k] for turn in each for r in turn) for k in range(4)]
        gain = ratio_interval([a / b for a, b in zip(medians["exact"], medians[column], strict=True)])
        text = "/".join(f"{value:.2f}" for value in parts)
        lines.append(f"{column:8} {text}  {gain['median']:.3f} ({gain['low95']:.3f} to {gain['high95']:.3f})")
    return lines


def main(out: str, seconds: float = 150.0) -> None:
    folder = Path(tempfile.mkdtemp())
    engines = start(folder, Path(out).parent)
    until = time.monotonic() + seconds
    for engine in engines.values():  # first runs compile and fill caches
        for tokens, cached in CASES:
            engine.ask(do="split", tokens=tokens, cached=cached, repeats=1)
    status = {name: engine.ask(do="status", plugin=name != "exact") for name, engine in engines.items()}
    result: dict[str, Any] = {"engines": status}
    result["unpinned"] = turns(engines, [(64, 0), (128, 8192)], 8, until)
    cores = by_speed()
    for engine in engines.values():
        engine.ask(do="pin", cores=cores)
    for count in (12, 24):
        result[f"pinned_{count}"] = turns(engines, CASES, count, until)
        Path(out).write_text(json.dumps(result))
        if time.monotonic() > until:
            break
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(TimedSession)
    else:
        main(sys.argv[1], *(float(value) for value in sys.argv[2:3]))
