"""``mixquant bench plan``: the plan against reality. Real engines run the sessions that the simulation predicts."""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.shapes import SHAPES, model_folder
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.errors import ConfigError
from mixquant_agents.files import json_object_in, write_whole
from mixquant_agents.planning.measure import Probes
from mixquant_agents.planning.simulate import EngineLimits
from mixquant_agents.planning.validate import again, by_device, validate
from mixquant_agents.planning.workload import Workload

__all__ = ["WORKLOADS", "predicted_again", "run_plan"]

WORKLOADS: Mapping[str, tuple[Workload, Probes]] = {
    "gpu": (
        Workload(
            turns=12, shared_tokens=7168, own_tokens=1024, tool_tokens=1024, answer_tokens=160, spread=0.5,
            max_context=24_576, summary_tokens=2048, ramp_seconds=3.0,
        ),
        Probes(),
    ),
    "cpu": (
        Workload(
            turns=8, shared_tokens=256, own_tokens=64, tool_tokens=96, answer_tokens=24, spread=0.5, max_context=1600,
            summary_tokens=128, tool_p86_seconds=0.5, tool_p95_seconds=1.5, ramp_seconds=2.0,
        ),
        Probes(
            rows=(32, 64, 128, 256, 512, 1024), context=512, writers=(1, 4, 8, 16, 32), tokens=16, repeats=3,
            beside_writer=(64, 256),
        ),
    ),
}  # fmt: skip
"""What agents do on each kind of device, and what the calibration asks of it."""


def predicted_again(path: Path, latency: float | None = None) -> dict[str, Any]:
    """A result of this command, or a file of several by device, with its runs predicted again by today's simulation.

    Args:
        latency: seconds of a TTFT outside of the engine's steps, for results measured without it.

    Raises:
        ConfigError: it is none.
    """
    result = json_object_in(path, "--again")

    def predicted(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "policies": {name: again(policy, latency) for name, policy in one["policies"].items()}}

    try:
        devices = {name: predicted(one) for name, one in (by_device(result) or {"": result}).items()}
        return devices.get("", devices)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--again {path} is no result of `mixquant bench plan`: {error!r}") from error


async def run_plan(
    *,
    model: str,
    policies: Sequence[str],
    workload: str = "cpu",
    agents: Sequence[int] = (8, 16, 32),
    seconds: float = 20.0,
    warm_up: float = 5.0,
    tokenizer: Path | None = None,
    kv_bytes: int | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    output: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Validate the simulation on one engine per policy; they start together and run one after the other.

    Args:
        model: a model's folder or hub id, or the name of a shape, which gets random weights.
        workload: one of :data:`WORKLOADS`.
        seconds: of each run; ``warm_up`` of them are not counted.
        tokenizer: folder whose tokenizer a shape borrows; its prompts are token ids, but the engine wants one.
        kv_bytes: KV cache of each engine.
        settings: further fields of :class:`EngineConfig`.
        output: file for the result; written after each run, too.

    Raises:
        ConfigError: a setting is wrong.
        EngineStartError: an engine did not start.
    """
    what, probes = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as scratch:
        extra: dict[str, Any] = dict(settings or {})
        if model in SHAPES:
            path = str(model_folder(model, Path(scratch), tokenizer))
            extra |= {"tool_parser": None, "reasoning_parser": None}  # its prompts are token ids
            extra["vllm_args"] = {**extra.get("vllm_args", {}), "load_format": "dummy"}
        else:
            path = model
        engines = {
            name: VllmEngine(
                EngineConfig(
                    model=path,
                    policy=PrecisionPolicy.of(name),
                    max_model_len=what.max_context + 64,
                    max_num_seqs=64,
                    kv_cache_bytes=kv_bytes,
                    **extra,
                )
            )
            for name in policies
        }
        try:
            await asyncio.gather(*(engine.start() for engine in engines.values()))
            results: dict[str, Any] = {}
            made = {
                "command": command,
                "date": datetime.now(UTC).date().isoformat(),
                "model": model,
                "device": next(iter(engines.values())).info.device,
                "policies": results,
            }

            def keep(name: str, validated: dict[str, Any]) -> None:
                results[name] = validated
                if output is not None:
                    write_whole(output, json.dumps(made, indent=1) + "\n")

            for name, engine in engines.items():
                say(f"{name}: started in {engine.start_seconds or 0:.0f} s")
                limits = EngineLimits(**await engine.limits())
                await validate(
                    engine,
                    what,
                    limits,
                    agents=agents,
                    seconds=seconds,
                    warm_up=warm_up,
                    probes=probes,
                    source=f"{model} on {engine.info.device}, policy {name}",
                    say=lambda text, name=name: say(f"{name}: {text}"),  # type: ignore[misc]  # mypy: the default
                    keep=functools.partial(keep, name),
                )
        finally:
            await asyncio.gather(*(engine.aclose() for engine in engines.values()))
    return made
