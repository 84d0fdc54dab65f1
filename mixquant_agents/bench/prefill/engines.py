"""The engines of ``mixquant bench prefill``: their arguments, their processes, and the conversation with them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill.plan import NESTED, OURS, Group, engine_of
from mixquant_agents.bench.prefill.random_weights import LOAD_FORMAT
from mixquant_agents.config import CAPTURE_SIZES, EngineConfig, NumberFormat, PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments
from mixquant_agents.engine.vllm.errors import start_error_from_text
from mixquant_agents.errors import EngineStartError

__all__ = ["SPAWN", "EngineProcess", "column_arguments", "engines"]

GIB = 2**30
WORKER = "mixquant_agents.bench.prefill.worker"
SPAWN = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
"""Ranks are processes of their own: a forked one could not use a GPU that its parent has touched."""


COMPACT = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""For an engine that quantizes experts while it loads them: each layer's 16-bit weights come and go, and FP8 ones half
their size would be cut out of the gaps. Of a 30B shape, vLLM's own FP8 then held 52 GiB for its 29."""


def column_arguments(
    column: str,
    model: Path,
    kv_gib: float,
    dummy: bool,
    max_len: int = 33_000,
    gpus: int = 1,
    memory: float | None = None,
) -> dict[str, Any]:
    """vLLM's engine arguments for a column.

    Args:
        column: its name.
        model: the model's folder.
        kv_gib: GiB of KV cache, shared among ``gpus`` tensor-parallel ranks.
        dummy: random weights; of a mixture loaded as a checkpoint's are (``random_weights``).
        max_len: longest request in tokens.
        gpus: see above.
        memory: of a GPU's memory, the share that the engine may use; what is left for the KV cache it finds itself.
    """
    values: dict[str, Any] = {
        "model": str(model),
        "skip_tokenizer_init": True,
        "max_model_len": max_len,
        "max_num_batched_tokens": 8192,
        "kv_cache_memory_bytes": int(kv_gib * GIB / gpus),
        "gpu_memory_utilization": 0.1,
        "attention_backend": "FLASH_ATTN",
        "disable_log_stats": True,
        "seed": 0,
    }
    if memory is not None:
        del values["kv_cache_memory_bytes"]
        values["gpu_memory_utilization"] = memory
    if _wide_heads(model):
        del values["attention_backend"]  # FlashAttention 3 ends at 256: vLLM picks one for each layer
    if gpus > 1:
        values |= {"tensor_parallel_size": gpus, "distributed_executor_backend": "mp"}
    if dummy:
        values["load_format"] = LOAD_FORMAT if gpus == 1 and _routes_rows(model) else "dummy"
    if column != "exact_default":
        values["max_num_seqs"] = 64
        values["compilation_config"] = {"cudagraph_capture_sizes": list(CAPTURE_SIZES)}
    if column == "uniform-fp8":
        values["quantization"] = "fp8"
    if column == NESTED:
        values |= policy_arguments(PrecisionPolicy(prefill_format=NumberFormat.FP8, storage="nested"))
    elif column.startswith("mixquant"):
        values |= policy_arguments(PrecisionPolicy.of(column.removesuffix("-exact-last")))
    return values


def _config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return config


def _routes_rows(model: Path) -> bool:
    """Whether what rows cost depends on their values, in a shape whose checkpoint we know."""
    return _config(model).get("model_type") == "qwen3_moe"


def _wide_heads(model: Path) -> bool:
    config = _config(model)
    return max(config.get("global_head_dim") or 0, config.get("head_dim") or 0) > 256


class EngineProcess:
    """A worker process and the conversation with it."""

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any],
        log: Path,
        worker: Sequence[str] = (sys.executable, "-m", WORKER),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """``arguments`` are vLLM's; the process runs ``worker`` and logs to ``log``, with ``env`` set too."""
        self.name = name
        self._model = str(arguments["model"])
        self._log = log
        self._stderr = log.open("w")
        self._process = subprocess.Popen(  # noqa: S603 - a worker of ours
            list(worker),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._ready: dict[str, Any] | None = None
        self._write(arguments)

    def _write(self, value: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise EngineStartError(f"engine {self.name!r} has no stdin")
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            tail = "".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            raise EngineStartError(f"engine {self.name!r} ended; its log ({self._log}) ends with:\n{tail}")
        event: dict[str, Any] = json.loads(line)
        return event

    def wait_for(self, *events: str) -> dict[str, Any]:
        """The next event of these kinds.

        Raises:
            EngineStartError: the engine failed.
        """
        if "ready" in events and self._ready is not None:
            return self._ready
        while True:
            event = self._read()
            if event.get("event") == "ready":
                self._ready = event
            if event.get("event") == "failed":
                text = event["text"]
                cause = start_error_from_text(text, "", EngineConfig(model=self._model), str(self._log))
                known = type(cause) is not EngineStartError
                raise EngineStartError(
                    f"engine {self.name!r} did not start: {cause if known else text}; see {self._log}"
                )
            if event.get("event") in events:
                return event

    def go(self) -> None:
        """Let the engine start, which until now has only imported."""
        self._write({})

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            EngineStartError: it failed; says how.
        """
        self._write(request)
        while True:
            event = self._read()
            if "result" in event:
                result: dict[str, Any] = event["result"]
                return result
            if "error" in event:
                raise EngineStartError(f"engine {self.name!r}: {event['error']}; see {self._log}")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._stderr.close()


def start_in_order(engines: Mapping[str, EngineProcess], measuring: Container[str], say: Callable[[str], None]) -> None:
    """Start all engines and wait until they are ready. The next one begins when one of ``measuring``, whose start-up
    measurement wants the GPU for itself, has measured."""
    for name, engine in engines.items():
        engine.go()
        if name in measuring:
            say(f"{name}: {engine.wait_for('measured', 'ready').get('text', 'ready')}")
    for name, engine in engines.items():
        say(f"{name}: ready after {engine.wait_for('ready')['start_seconds']:.0f} s")


@contextlib.contextmanager
def engines(
    group: Group,
    model: Path,
    dummy: bool,
    logs: Path,
    say: Callable[[str], None],
    gpus: int = 1,
    memory: float | None = None,
) -> Iterator[dict[str, EngineProcess]]:
    """Processes by name. Ours first: its start-up measurement wants the GPU for itself; the others then all at once."""
    names = list(dict.fromkeys(map(engine_of, group.columns)))
    names.sort(key=lambda name: name not in (OURS, NESTED))
    alive: dict[str, EngineProcess] = {}
    try:
        for name in names:
            arguments = column_arguments(name, model, group.kv[name], dummy, group.max_len, gpus, memory)
            env = SPAWN | (COMPACT if name == "uniform-fp8" and _routes_rows(model) else {})
            alive[name] = EngineProcess(name, arguments, logs / f"{name}.log", env=env)
        start_in_order(alive, (OURS, NESTED), say)
        yield alive
    finally:
        for engine in alive.values():
            engine.close()
