"""One engine of ``mixquant bench prefill``, in a process of its own: takes JSON lines on stdin, answers on stdout.

Engines of several processes share one GPU by taking turns, so all of them can be alive while one is measured.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from mixquant_agents.bench.prefill.cores import pin_threads
from mixquant_agents.bench.prefill.measure import Measurements
from mixquant_agents.bench.prefill.random_weights import register_loader
from mixquant_agents.quant.vllm.draft.schedule import DraftSchedule

__all__ = ["Session", "main"]


class Session(Measurements):
    """The measurements, and what else can be asked of an engine."""

    def policy(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Switch the plugin's policy; its status."""
        return {"status": self.engine.collective_rpc("mixquant_set_policy", args=(policy,))[0]}

    def status(self, plugin: bool) -> dict[str, Any]:
        """Memory, start time, the plugin's own words."""
        import torch

        model_bytes = self.engine.collective_rpc(_weight_bytes)[0]
        status = {
            "start_seconds": self.start_seconds,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "weight_bytes": model_bytes,
            "allocated_bytes": torch.cuda.memory_allocated() if torch.cuda.is_available() else None,
            "reserved_bytes": torch.cuda.memory_reserved() if torch.cuda.is_available() else None,
            "device_free_bytes": torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None,
        }
        if plugin:
            status["plugin"] = self.engine.collective_rpc("mixquant_status")[0]
            schedule = self.engine.engine_core.engine_core.scheduler.dynamic_sd_lookup
            if isinstance(schedule, DraftSchedule):
                status["drafts"] = dataclasses.asdict(schedule.total)
        return status

    def reload(self, path: str) -> dict[str, Any]:
        """Load the weights of another checkpoint of the same shape into the running engine."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
        return {"prefix_cache_reset": self.engine.reset_prefix_cache()}

    def sleep(self) -> dict[str, Any]:
        """Move the weights to the host's memory and back; GiB that the GPU had more meanwhile, and the time of both."""
        import torch

        before, began = torch.cuda.mem_get_info()[0], time.perf_counter()
        self.engine.sleep(level=1)
        freed = torch.cuda.mem_get_info()[0] - before
        self.engine.wake_up()
        return {"freed_gib": freed / 2**30, "seconds": time.perf_counter() - began}

    def drafts(self, count: int | None) -> None:
        """From now on ``count`` tokens are drafted in each cycle; ``None``: as many as the policy's rule says."""
        self.engine.engine_core.engine_core.scheduler.dynamic_sd_lookup.fixed = count

    def pin(self, cores: list[int]) -> dict[str, Any]:
        """Keep this process on ``cores``; see ``prefill_cores``."""
        return {"threads": pin_threads(cores)}


def _weight_bytes(worker: Any) -> int:
    """Bytes of everything the model holds: parameters and buffers, twins among them."""
    model = worker.get_model()
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


class _Measured(logging.Handler):
    """Tells the parent that the start-up measurement is over, so that other engines may use the GPU."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if "run exact" in record.getMessage():
            self._say({"event": "measured", "text": record.getMessage()})


def main(session: Callable[[dict[str, Any]], Session] = Session) -> None:
    """Serve one engine until stdin ends; ``session`` makes it from vLLM's arguments."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints goes to stderr; only answers go to the parent

    def say(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    arguments = json.loads(sys.stdin.readline())
    import vllm.v1.engine.llm_engine  # noqa: F401 - half a minute of imports, while another engine has the GPU

    register_loader()
    # Only now: vLLM's logging set-up, at its import, takes handlers away.
    logging.getLogger("vllm.mixquant").addHandler(_Measured(say))
    sys.stdin.readline()  # the parent says when to go on
    try:
        served = session(arguments)
    except Exception as error:
        say({"event": "failed", "text": f"{type(error).__name__}: {error}"})
        raise
    say({"event": "ready", "start_seconds": served.start_seconds})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say({"result": getattr(served, request.pop("do"))(**request)})
        except Exception as error:  # the parent decides; the engine may live on
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
