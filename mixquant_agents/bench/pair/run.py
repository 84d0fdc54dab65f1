"""A whole run: both engines started, everything measured that was asked for, the result written after each part."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.own_process import OwnProcessEngine
from mixquant_agents.bench.pair.columns import PairBench
from mixquant_agents.bench.pair.engines import engine_configs, own_process_engines
from mixquant_agents.bench.pair.options import Options
from mixquant_agents.bench.pair.turn import run_turn
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.files import write_whole
from mixquant_agents.planning.measure import Probes, measure_latency

__all__ = ["main", "measure"]

QUESTIONS = (
    "Explain how a sailing boat can move against the wind.",
    "Write a short story about a lighthouse keeper and a whale.",
    "What should one look at when buying a used bicycle?",
    "Describe the water cycle to a child of ten years.",
)
"""First messages of the conversations of a model that can read."""


async def measure(options: Options) -> dict[str, Any]:
    """Start both engines and run what was asked for."""
    from vllm.platforms import current_platform

    gpus = bool(current_platform.is_cuda())
    result: dict[str, Any] = {
        "command": options.command,
        "date": datetime.now(UTC).date().isoformat(),
        "model": options.model,
        "connector": options.connector,
        "policy": options.policy,
    }

    def keep() -> None:
        if options.output is not None:
            write_whole(options.output, json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        configs = engine_configs(options, Path(scratch), gpus=gpus)
        token_bytes = _token_bytes(configs[0], gpus=gpus)
        prefill, decode = engines = own_process_engines(configs, gpus=gpus)
        try:
            await asyncio.gather(*(engine.start() for engine in engines))
            result |= _description(prefill, decode, token_bytes)
            keep()
            bench = PairBench(prefill, decode, token_bytes, options.kept_seconds)
            await _measure_parts(bench, prefill, decode, options, result, keep, gpus=gpus)
        finally:
            await asyncio.gather(*(engine.aclose() for engine in engines))
    return result


async def _measure_parts(
    bench: PairBench,
    prefill: OwnProcessEngine,
    decode: OwnProcessEngine,
    options: Options,
    result: dict[str, Any],
    keep: Callable[[], None],
    *,
    gpus: bool,
) -> None:
    """Fill ``result``, and ``keep`` it after each part."""
    for engine in bench.columns.values():
        await run_turn(engine, bench.ids(max(options.prompt_lengths)), 4)  # whatever happens once, happens now
    result["reading"] = []
    for tokens in options.prompt_lengths:
        result["reading"].append(await bench.reading(tokens, options.answer, options.repeats))
        keep()
    probes = Probes() if gpus else Probes(rows=(32, 64, 128, 256), tokens=24, beside_writer=(64, 128, 256))
    result["latency_seconds"] = {
        name: round(await engine.run(measure_latency, probes), 6)
        for name, engine in (("policy", prefill), ("exact", decode))
    }
    if options.writers:
        result["mixed"] = await bench.mixed(options.writers, options.mixed_answer, options.mixed_prompt, options.every)
        keep()
    if options.turns:
        result["threads"] = await bench.threads(
            options.turns,
            options.new,
            options.turn_answer,
            kv_back=options.connector == "nixl",
            forced=not options.random_weights,
            beginnings=await _beginnings(bench, decode, options),
        )
        keep()


async def _beginnings(bench: PairBench, decode: OwnProcessEngine, options: Options) -> list[Sequence[int]]:
    """The first prompt of each conversation, token ids; random where the weights are."""
    if options.random_weights:
        return [bench.ids(options.new) for _ in range(options.threads)]
    return [
        await decode.render(EngineRequest(request_id="", messages=[{"role": "user", "content": question}]))
        for question in QUESTIONS[: options.threads]
    ]


def _description(prefill: OwnProcessEngine, decode: OwnProcessEngine, token_bytes: int) -> dict[str, Any]:
    started = {"prefill": prefill.started, "decode": decode.started}
    return {
        "device": decode.info.device,
        "start_seconds": {side: engine and round(engine.seconds or 0, 1) for side, engine in started.items()},
        "memory_bytes": {side: engine and engine.memory_bytes for side, engine in started.items()},
        "limits": {side: engine and engine.limits for side, engine in started.items()},
        "kv_bytes_per_token": token_bytes,
    }


def _token_bytes(config: EngineConfig, *, gpus: bool) -> int:
    """Bytes of a token's KV: vLLM holds it in 16 bits on a GPU and in 32 on a CPU."""
    from mixquant_agents.engine.vllm.checkpoint import kv_bytes_per_token, model_config, model_path

    return kv_bytes_per_token(model_config(model_path(config)[0], config), 2 if gpus else 4) or 0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    result = asyncio.run(measure(Options.parsed(arguments)))
    print(json.dumps(result, indent=1))  # noqa: T201 - the result is what this program is for
