"""What an engine that knows its agents gains: ``python -m mixquant_agents.bench.gpu.agents OUT.json TOKENIZER``.

One engine of a model's shape with random weights, and the tokenizer of the folder ``TOKENIZER``. The measurements:

- ``warm``: a tool runs for two seconds and its result of 8k tokens is read as it grows (``Engine.prefetch``), beside
  agents that write. Against the same without reading ahead, in turns on one engine: time to the first token of the turn
  behind the tool, and the time between tokens of the others. ``--ways`` adds controls: by vLLM's own schedule, and the
  prompts rendered only.
- ``priority``: a thread at priority 0 and one at priority 10 beside sixteen busy ones at priority 10; ``--steps`` by
  rows of a step that holds the less urgent (0: vLLM's own schedule).
- ``sleep``: memory before, asleep and awake; greedy answers before and after.
- ``swap``: a second engine takes turns with the first on one card that does not hold both.

``OUT.json`` is written after each of them.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.config import BACKGROUND_PRIORITY, EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import EngineRequest, Sampling
from mixquant_agents.engine.vllm import VllmEngine
from mixquant_agents.engine.vllm.core import RunningEngine
from mixquant_agents.engine.vllm.kept import Pieces
from mixquant_agents.errors import EngineStartError
from mixquant_agents.files import write_whole
from mixquant_agents.quant.deferral import STEP_ROWS
from mixquant_agents.records import percentile

GIB = 2**30
VOCABULARY = 49_152
"""Of the tokenizer: random weights may then write any token."""
WORDS = ("lake", "river", "hill", "stone", "water", "north", "bridge", "village", "road", "winter", "salt", "copper")
PERCENTILES = (0.5, 0.9, 0.95, 0.99)
_numbers = itertools.count()


def model_folder(shape: str, folder: Path, tokenizer: Path) -> Path:
    """The shape with a tokenizer, and with its vocabulary."""
    fields = {**SHAPES[shape], "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    target = folder / shape
    target.mkdir()
    (target / "config.json").write_text(json.dumps(fields))
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, target)
    return target


def text(words: int, seed: int) -> str:
    """About 1.1 tokens a word; another text for each seed."""
    draw = random.Random(seed)  # noqa: S311 - the same texts in every run
    return " ".join(f"{draw.choice(WORDS)} {draw.randrange(100)}" for _ in range(words // 2))


def tokens(count: int, seed: int) -> list[int]:
    """Ordinary tokens; others for each seed."""
    draw = random.Random(seed)  # noqa: S311 - the same prompts in every run
    return [draw.randrange(100, VOCABULARY - 100) for _ in range(count)]


def asked(
    messages: Sequence[dict[str, Any]] = (), answer: int = 16, prompt: list[int] | None = None, priority: int = 0
) -> EngineRequest:
    sampling = Sampling(temperature=0, max_tokens=answer, ignore_eos=True)
    return EngineRequest(
        request_id=f"agents-{next(_numbers)}",
        messages=messages,
        prompt_token_ids=prompt,
        sampling=sampling,
        priority=priority,
    )


async def turn(engine: VllmEngine, request: EngineRequest) -> dict[str, Any]:
    """Seconds to the first token, instants of all, the tokens, and the counts."""
    begun, counts = time.monotonic(), None
    instants: list[float] = []
    ids: list[int] = []
    async for delta in engine.stream(request):
        if delta.token_ids:
            instants.append(time.monotonic())
            ids += delta.token_ids
        counts = delta.counts or counts
    return {"ttft": instants[0] - begun, "instants": instants, "ids": ids, "counts": counts}


async def writers(engine: VllmEngine, count: int, gaps: list[float], stop: asyncio.Event) -> None:
    """Agents that write all the time; the time between their tokens goes to ``gaps``."""

    async def write(number: int) -> None:
        for again in itertools.count():
            if stop.is_set():
                return
            result = await turn(engine, asked(prompt=tokens(64, 1_000 * number + again), answer=256))
            gaps.extend(b - a for a, b in itertools.pairwise(result["instants"]))

    await asyncio.gather(*(write(number) for number in range(count)))


def running_engine(engine: VllmEngine) -> RunningEngine:
    """What drives vLLM behind ``engine``."""
    running = engine._handle.running
    if running is None:
        raise RuntimeError("the engine is not running")
    return running


async def deferral(engine: VllmEngine, **settings: Any) -> dict[str, Any]:
    """Change what the scheduler leaves for later; what it did so far."""
    running = running_engine(engine)
    call = running.llm.engine_core.call_utility_async("mixquant_deferral", settings)
    return dict(await asyncio.wrap_future(running.submit(call)) or {})


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "read ahead": {},
    "read ahead, pieces of 2048": {"pieces": Pieces(tokens=2048)},
    "read ahead, pieces of a half": {"pieces": Pieces(tokens=2048, share=0.5)},
    "read ahead, steps of 3840": {"background_rows": 3840},
    "read ahead, one step in 64": {"background_gap": 64},
    "read ahead, vLLM's schedule": {"enabled": False},
    "rendered only": {},
}
"""What is tried, and the settings for it: the scheduler's, and in which pieces a growing prompt is read."""


def gap_figures(gaps: Sequence[float]) -> dict[str, float | int | None]:
    """Seconds between tokens: percentiles, and the share of those half as long again as the median."""
    median = percentile(gaps, 0.5)
    figures: dict[str, float | int | None] = {f"p{100 * share:g}": percentile(gaps, share) for share in PERCENTILES}
    slow = sum(gap > 1.5 * (median or 0) for gap in gaps) / max(len(gaps), 1)
    return {"count": len(gaps), "mean": statistics.fmean(gaps), **figures, "max": max(gaps), "slow_share": slow}


async def measure_warm(engine: VllmEngine, plan: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all ways, in turns."""
    rows: dict[str, list[float]] = {way: [] for way in plan.ways}
    gaps: dict[str, list[float]] = {way: [] for way in plan.ways}
    shares: dict[str, list[float]] = {way: [] for way in plan.ways}
    call = {"id": "call00001", "type": "function", "function": {"name": "search", "arguments": '{"query": "lakes"}'}}
    settings = await deferral(engine)
    usual = {name: settings[name] for name in ("enabled", "background_rows", "background_gap")}
    for number in range(len(plan.ways) * (plan.rounds + 1)):  # the first of each warms up
        way = plan.ways[number % len(plan.ways)]
        changes = {"pieces": Pieces(), **usual, **WAYS[way]}
        running_engine(engine).pieces = changes.pop("pieces")
        await deferral(engine, **changes)
        history: list[dict[str, Any]] = [
            {"role": "user", "content": text(800, 10_000 + number)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        result = text(plan.result_words, 20_000 + number)

        def known(share: float, result: str = result, history: list[dict[str, Any]] = history) -> list[dict[str, Any]]:
            part = result[: int(len(result) * share)]
            return [*history, {"role": "tool", "tool_call_id": "call00001", "content": part}]

        await turn(engine, asked(history[:1], 1))  # the turn that called
        stamps: list[float] = []
        stop = asyncio.Event()
        busy = asyncio.create_task(writers(engine, plan.writers, stamps, stop))
        begun, reading = time.monotonic(), []
        for step in range(1, 9):  # the tool works: an eighth of its result at a time
            part = known(step / 8 - 1 / 16)
            if way.startswith("read ahead"):
                ahead = engine.prefetch(asked(part, priority=BACKGROUND_PRIORITY), growing=True)
                reading.append(asyncio.create_task(ahead))
            elif way == "rendered only":
                reading.append(asyncio.create_task(engine.count_tokens(part)))
            await asyncio.sleep(max(0.0, begun + plan.tool_seconds * step / 8 - time.monotonic()))
        row = await turn(engine, asked(known(1.0), 8))
        stop.set()
        await busy
        await asyncio.gather(*reading)
        if number >= len(plan.ways):
            rows[way].append(row["ttft"])
            gaps[way] += stamps
            shares[way].append(row["counts"].cached_tokens / row["counts"].prompt_tokens)
    after = await deferral(engine, **usual)
    ttft = {way: statistics.median(each) for way, each in rows.items()}
    itl = {way: gap_figures(each) for way, each in gaps.items()}
    return {
        "rounds": plan.rounds,
        "prompt_tokens": row["counts"].prompt_tokens,
        "tool_seconds": plan.tool_seconds,
        "writers": plan.writers,
        "ttft_s": ttft,
        "ttft_ratio": {way: value / ttft["plain"] for way, value in ttft.items()},
        "cached_share": {way: statistics.median(each) for way, each in shares.items()},
        "itl_p95_ratio": {way: (each["p95"] or 0) / (itl["plain"]["p95"] or 1) for way, each in itl.items()},
        "itl_s": itl,
        "deferral": after,
        "rows": rows,
    }


async def measure_priority(engine: VllmEngine, plan: argparse.Namespace) -> dict[str, Any]:
    """Two probing threads beside busy ones, by rows of a step that holds the less urgent."""
    usual = await deferral(engine)
    result: dict[str, Any] = {}
    for rows in plan.steps:
        await deferral(engine, enabled=rows > 0, step_rows=rows or usual["step_rows"])
        result[f"step of {rows} rows" if rows else "vLLM's schedule"] = await _priority(engine, plan)
    await deferral(engine, enabled=usual["enabled"], step_rows=usual["step_rows"])
    return result


async def _priority(engine: VllmEngine, plan: argparse.Namespace) -> dict[str, Any]:
    stop = asyncio.Event()
    ttft: dict[int, list[float]] = {0: [], 10: []}
    turns, epoch = 0, next(_numbers)

    async def busy(number: int) -> None:
        nonlocal turns
        for again in itertools.count():
            if stop.is_set():
                return
            seed = 1_000_000 * epoch + 50_000 + 1_000 * number + again
            await turn(engine, asked(prompt=tokens(plan.busy_tokens, seed), answer=32, priority=10))
            turns += not stop.is_set()

    async def probe(priority: int) -> None:
        for again in itertools.count():
            if stop.is_set():
                return
            seed = 1_000_000 * epoch + 90_000 + 5_000 * priority + again
            row = await turn(engine, asked(prompt=tokens(plan.probe_tokens, seed), answer=8, priority=priority))
            ttft[priority].append(row["ttft"])
            await asyncio.sleep(0.05)

    work: list[Coroutine[Any, Any, None]] = [busy(number) for number in range(plan.busy)]
    tasks = [asyncio.create_task(each) for each in (*work, probe(0), probe(10))]
    await asyncio.sleep(plan.seconds)
    stop.set()
    await asyncio.gather(*tasks)
    p95 = {priority: percentile(values, 0.95) for priority, values in ttft.items()}
    return {
        "busy": plan.busy,
        "busy_prompt_tokens": plan.busy_tokens,
        "busy_turns_per_s": turns / plan.seconds,
        "probe_prompt_tokens": plan.probe_tokens,
        "turns": {str(priority): len(values) for priority, values in ttft.items()},
        "ttft_p50_s": {str(priority): percentile(values, 0.5) for priority, values in ttft.items()},
        "ttft_p95_s": {str(priority): value for priority, value in p95.items()},
        "p95_ratio": (p95[0] or 0) / (p95[10] or 1),
    }


PROMPTS = (5, 100, 600, 1500)
"""Tokens of the prompts whose greedy answers are compared."""


async def answers(engine: VllmEngine) -> list[list[int]]:
    await engine.reset_prefix_cache()
    return [(await turn(engine, asked(prompt=tokens(count, 7 + count), answer=24)))["ids"] for count in PROMPTS]


async def measure_sleep(engine: VllmEngine, baseline: int | None) -> dict[str, Any]:
    """Twice to sleep and back: the first time the host's memory has yet to be found."""
    before, rounds = await answers(engine), []
    for _ in range(2):
        report = await engine.sleep()
        begun = time.monotonic()
        await engine.wake()
        woken = time.monotonic() - begun
        after = await answers(engine)
        held = None if report.held_bytes is None else report.held_bytes - (baseline or 0)
        rounds.append(
            {
                "way": report.way,
                "sleep_s": report.seconds,
                "wake_s": woken,
                "held_gib": None if held is None else held / GIB,
                "freed_gib": None if report.freed_bytes is None else report.freed_bytes / GIB,
                "freed_share": None if not held or report.freed_bytes is None else report.freed_bytes / held,
                "same_answers": sum(a == b for a, b in zip(before, after, strict=True)),
                "answers": len(before),
            }
        )
    return {"rounds": rounds}


async def measure_swap(first: VllmEngine, config: EngineConfig) -> dict[str, Any]:
    """Two engines take turns on one card: whoever answers has it to himself."""
    engines = {"first": first, "second": VllmEngine(config)}
    before = {"first": await answers(first)}
    log: list[dict[str, Any]] = []

    async def change(falls_asleep: str, wakes: str) -> None:
        report = await engines[falls_asleep].sleep()
        begun = time.monotonic()
        await (engines[wakes].wake() if wakes in before else engines[wakes].start())
        took = time.monotonic() - begun
        after, earlier = await answers(engines[wakes]), before.get(wakes)
        before.setdefault(wakes, after)
        log.append(
            {
                "asleep": falls_asleep,
                "sleep_s": report.seconds,
                "freed_gib": None if report.freed_bytes is None else report.freed_bytes / GIB,
                "awake": wakes,
                "start_s" if earlier is None else "wake_s": took,
                "same_answers": None if earlier is None else sum(map(list.__eq__, earlier, after)),
            }
        )

    async with engines["second"]:
        for falls_asleep, wakes in (("first", "second"), ("second", "first"), ("first", "second"), ("second", "first")):
            await change(falls_asleep, wakes)
    return {"second_kv_gib": (config.kv_cache_bytes or 0) / GIB, "answers": len(PROMPTS), "turns": log}


def engine_config(plan: argparse.Namespace, folder: Path) -> EngineConfig:
    """Settings of the engine, whose random weights are described in ``folder``."""
    return EngineConfig(
        model=str(model_folder(plan.shape, folder, Path(plan.tokenizer))),
        policy=PrecisionPolicy.of(plan.policy),
        sleep_mode=plan.sleep == "host",
        max_model_len=plan.max_model_len,
        max_num_seqs=64,
        max_num_batched_tokens=plan.batched,
        kv_cache_bytes=int(plan.kv_gib * GIB),
        chat_template=str(resources.files("mixquant_agents") / "templates" / "hermes.jinja"),
        tool_parser="hermes",
        reasoning_parser=None,
        vllm_args={"load_format": "dummy"},
    )


async def start(config: EngineConfig) -> tuple[VllmEngine, str | None]:
    """A started engine; where sleep mode is refused one without it, and the reason."""
    engine = VllmEngine(config)
    try:
        await engine.start()
    except EngineStartError as error:
        await engine.aclose()
        if not config.sleep_mode:
            raise
        print(f"no sleep mode: {error}", flush=True)
        engine, _ = await start(config.model_copy(update={"sleep_mode": False}))
        return engine, str(error)[:500]
    return engine, None


def second_config(config: EngineConfig, plan: argparse.Namespace, folder: Path) -> EngineConfig:
    """Settings of the engine that takes turns with the first."""
    return config.model_copy(
        update={
            "model": str(model_folder(plan.swap, folder, Path(plan.tokenizer))),
            "kv_cache_bytes": int(plan.swap_kv_gib * GIB),
            "enforce_eager": True,
        }
    )


async def run(plan: argparse.Namespace) -> None:
    """All measurements; what fails is noted, and the others go on."""
    from mixquant_agents.engine.vllm.memory import device_bytes

    baseline = device_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine, refusal = await start(engine_config(plan, folder))
        async with engine:
            info = engine.info
            result = {
                "command": " ".join(["python -m mixquant_agents.bench.gpu.agents", *sys.argv[1:]]),
                **({} if refusal is None else {"sleep_mode_refused": refusal}),
                "shape": plan.shape,
                "device": info.device,
                "policy": info.policy,
                "start_s": engine.start_seconds,
                "prefill_format": info.prefill_format,
                "kv_gib": plan.kv_gib,
            }
            print(f"ready after {engine.start_seconds:.0f} s on {info.device}", flush=True)
            parts: dict[str, Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = {
                "warm": lambda: measure_warm(engine, plan),
                "priority": lambda: measure_priority(engine, plan),
            }
            if plan.sleep != "none":
                parts["sleep"] = lambda: measure_sleep(engine, baseline)
            if plan.swap:
                parts["swap"] = lambda: measure_swap(engine, second_config(engine.config, plan, folder))
            for part in (name for name in parts if name in plan.parts):
                begun = time.monotonic()
                try:
                    result[part] = await parts[part]()
                except Exception as error:  # the others are worth having
                    result[part] = {"error": f"{type(error).__name__}: {error}"}
                print(f"{part} ({time.monotonic() - begun:.0f} s): {json.dumps(result[part])[:900]}", flush=True)
                write_whole(plan.out, json.dumps(result, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mixquant_agents.bench.gpu.agents")
    parser.add_argument("out", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--shape", default="qwen3-8b")
    parser.add_argument("--policy", default="mixquant-fp8")
    parser.add_argument("--max-model-len", type=int, default=16_384)
    parser.add_argument("--batched", type=int, default=8_192)
    parser.add_argument("--kv-gib", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--result-words", type=int, default=4_300)
    parser.add_argument("--tool-seconds", type=float, default=2.0)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--busy", type=int, default=16)
    parser.add_argument("--busy-tokens", type=int, default=6_000)
    parser.add_argument("--probe-tokens", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["plain", "read ahead"])
    parser.add_argument("--steps", nargs="+", type=int, default=[STEP_ROWS])
    parser.add_argument("--parts", nargs="+", default=["warm", "priority", "sleep", "swap"])
    parser.add_argument("--swap", default="", help="shape of a second engine that takes turns with the first")
    parser.add_argument("--swap-kv-gib", type=float, default=80.0)
    parser.add_argument("--sleep", choices=("host", "ended", "none"), default="host")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
