"""What a step costs that reads a prompt beside eight writers.

``python -m mixquant_agents.bench.gpu.mixed_steps OUT.json``

Two engines of the Qwen3-8B shape, ``exact`` and ``mixquant-fp8``, take turns. Up to the measured threshold such a step
runs exact in both, so whatever lies between the two is the plugin's. For each request: milliseconds to its first token,
and of the step that holds its prompt, the host's time in ``execute_model`` and the GPU's, from events. Then, in runs of
their own, the microseconds of each kernel by the profiler, summed over a request.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mixquant_agents.bench.gpu.small_steps import TimedSession
from mixquant_agents.bench.prefill.cores import by_speed
from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments
from mixquant_agents.bench.prefill.measure import own_name
from mixquant_agents.bench.prefill.worker import main as serve
from mixquant_agents.bench.shapes import write_model
from mixquant_agents.files import write_whole

NEW = (256, 768)
WRITERS, TURNS, REPEATS = 8, 16, 4
SERVE = (sys.executable, "-m", "mixquant_agents.bench.gpu.mixed_steps", "--serve")


class MixedSession(TimedSession):
    """Also reads prompts beside writers."""

    def mixed(self, tokens: int, repeats: int, kernels: bool) -> dict[str, Any]:
        """Prompts of ``tokens``, four steps apart; ``kernels`` profiles them."""
        import torch

        names = {self._add(self._tokens(128), 24 + 16 * repeats) for _ in range(WRITERS)}
        waiting = set(names)
        while waiting:
            waiting -= {own_name(output.request_id, names) for output in self.engine.step()}
        rows: list[dict[str, float]] = []
        kernel_times: dict[str, list[float]] = {}
        for _ in range(repeats):
            for _ in range(4):
                self.engine.step()
            self._steps.clear()
            if kernels:
                torch.cuda.synchronize()
            profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            with profiler if kernels else contextlib.nullcontext():
                started = time.perf_counter()
                name = self._add(self._tokens(tokens), 1)
                while not any(own_name(output.request_id, {name}) == name for output in self.engine.step()):
                    pass
                total = (time.perf_counter() - started) * 1e3
                torch.cuda.synchronize()
            longest = max(self._steps, key=lambda step: step.gpu_ms)
            rows.append({"total": total, "host": longest.host_ms, "gpu": longest.gpu_ms})
            for event in profiler.events() if kernels else ():
                count = kernel_times.setdefault(event.name[:90], [0.0, 0.0])
                count[0] += 1 / repeats
                count[1] += event.device_time_total / repeats
        self.engine.abort_request(list(names))
        for _ in self._run():
            pass
        return {"rows": rows, "kernels": kernel_times}


def start(folder: Path, logs: Path) -> dict[str, EngineProcess]:
    model = write_model("qwen3-8b", folder)
    engines = {}
    for name in ("mixquant-fp8", "exact"):
        arguments = column_arguments(name, model, 1.7, True) | {"max_model_len": 10_500}
        engines[name] = EngineProcess(name, arguments, logs / f"{name}.log", SERVE)
    for name, engine in engines.items():
        engine.go()
        if name != "exact":
            print(engine.wait_for("measured", "ready").get("text"), flush=True)
    for engine in engines.values():
        engine.wait_for("ready")
    return engines


def main(out: str) -> None:
    engines = start(Path(tempfile.mkdtemp()), Path(out).parent)
    result: dict[str, Any] = {}
    for tokens in NEW:
        for engine in engines.values():  # uncounted: first runs compile and fill caches
            engine.ask(do="mixed", tokens=tokens, repeats=2, kernels=False)
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for turn in range(TURNS):
            if turn % 2 == 0:
                cores = by_speed()
                for engine in engines.values():
                    engine.ask(do="pin", cores=cores)
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                rows[name] += engines[name].ask(do="mixed", tokens=tokens, repeats=REPEATS, kernels=False)["rows"]
        each = result[f"mix_{WRITERS}_{tokens}"] = {}
        for name, engine in engines.items():
            each[name] = {key: round(statistics.median(row[key] for row in rows[name]), 3) for key in rows[name][0]}
            print(tokens, name, each[name], flush=True)
            kernel_times = engine.ask(do="mixed", tokens=tokens, repeats=5, kernels=True)["kernels"]
            each[name]["kernels_us"] = {key: [round(value, 1) for value in pair] for key, pair in kernel_times.items()}
    write_whole(Path(out), json.dumps(result, indent=1) + "\n")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(MixedSession)
    else:
        main(sys.argv[1])
