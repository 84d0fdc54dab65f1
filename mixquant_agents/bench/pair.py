"""A pair of engines beside one: the same prompts read by a quantized engine and answered by an exact one, with vLLM's
connector between them, and on each engine alone.

::

    python -m mixquant_agents.bench.pair --policy mixquant-int8 --lengths 256,1024 --output pair.json

Three columns: ``pair``, ``policy`` (the reading engine alone) and ``exact`` (the writing engine alone). Each engine has
a process of its own, and both start at once. On GPUs the reading engine has device 0, the writing one device 1; on a
CPU each has one thread, for threads of two engines on the same cores wait for each other.

The policy's last prompt tokens run exact, as many as the pair's writing engine runs of a prompt itself: so the pair and
``policy`` run the same rows in the same precision, and write the same up to the order in which products are summed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.bench.own_process import OwnProcessEngine, vllm_engine
from mixquant_agents.bench.shapes import SHAPES, model_folder
from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest, Sampling, TokenLogprob
from mixquant_agents.engine.pair import PairEngine
from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.measure import Probes, measure_latency
from mixquant_agents.records import TurnCounts, percentile

__all__ = ["PairBench", "kl_divergence", "main", "measure"]

ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
VOCABULARY = (1000, 40_000)
"""Range that token ids are drawn from."""
LEASE_SECONDS = 120.0
_names = itertools.count()


@dataclass
class _Turn:
    """What came of one turn."""

    asked: float
    stamps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    counts: TurnCounts = field(default_factory=TurnCounts)

    @property
    def ttft(self) -> float:
        return self.stamps[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.stamps)]


class _Counted(Engine):
    """The writing engine, whose own counts are kept: a pair's record says what the pair did."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.counts: TurnCounts | None = None

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None:
        await self._engine.start()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        async for delta in self._engine.stream(request):
            if delta.counts is not None:
                self.counts = delta.counts
            yield delta


async def _turn(
    engine: Engine, prompt: Sequence[int], answer: int, *, thread: str | None = None, **sampling: Any
) -> _Turn:
    """One turn. Only turns of the same thread find cached blocks of each other: a reset would fail while a connector
    holds blocks."""
    request = EngineRequest(
        request_id=f"pair-{next(_names)}",
        messages=(),
        prompt_token_ids=tuple(prompt),
        thread_id=thread,
        cache_salt=thread or f"pair-{next(_names)}",
        sampling=Sampling(temperature=0.0, max_tokens=answer, min_tokens=answer, ignore_eos=True, **sampling),
    )
    turn = _Turn(time.monotonic())
    async for delta in engine.stream(request):
        turn.stamps += [time.monotonic()] * len(delta.token_ids)
        turn.tokens += delta.token_ids
        turn.logprobs += delta.logprobs
        turn.counts = delta.counts or turn.counts
    return turn


def kl_divergence(exact: TokenLogprob, other: TokenLogprob) -> float:
    """``KL(exact ‖ other)`` in nats over the tokens that both list and one rest: a lower bound of the whole."""

    def shares(token: TokenLogprob) -> dict[str, float]:
        listed: dict[str, float] = {}
        for text, value in token.top:
            listed[text] = listed.get(text, 0.0) + math.exp(value)
        return listed

    one, two = shares(exact), shares(other)
    both = [text for text in one if text in two]
    pairs = [(one[text], two[text]) for text in both]
    rest = tuple(max(1e-9, 1 - sum(pair[side] for pair in pairs)) for side in (0, 1))
    return max(0.0, sum(p * math.log(p / q) for p, q in [*pairs, (rest[0], rest[1])] if p > 0))


class PairBench:
    """Two engines, alone and as a pair."""

    def __init__(self, prefill: Engine, decode: Engine, token_bytes: int, kept_seconds: float, seed: int = 0) -> None:
        self.prefill, self.decode, self.token_bytes, self.kept_seconds = prefill, decode, token_bytes, kept_seconds
        self.counted = _Counted(decode)
        self.pair = PairEngine(prefill, self.counted, lease_seconds=LEASE_SECONDS)
        self.columns: Mapping[str, Engine] = {"pair": self.pair, "policy": prefill, "exact": decode}
        self._draw = random.Random(seed)  # noqa: S311 - prompts that mean nothing

    def ids(self, count: int) -> list[int]:
        """Token ids that no prefix cache knows."""
        return self._draw.choices(range(*VOCABULARY), k=count)

    async def reading(self, tokens: int, answer: int, repeats: int) -> dict[str, Any]:
        """Cold prompts of so many tokens: TTFT, TPOT, rows, bytes moved, and whether the pair answers as ``policy``."""
        turns: dict[str, list[_Turn]] = {name: [] for name in self.columns}
        prompts = [self.ids(tokens) for _ in range(repeats)]
        moved: list[int] = []
        for number, prompt in enumerate(prompts):
            names = list(self.columns)
            for name in (*names[number % 3 :], *names[: number % 3]):  # no column is always first
                turns[name].append(await _turn(self.columns[name], prompt, answer))
                if name == "pair" and self.counted.counts is not None:
                    moved.append((self.counted.counts.cached_tokens or 0) * self.token_bytes)
        counts = ("prompt_tokens", "cached_tokens", "prefill_tokens", "quantized_tokens", "exact_tokens")
        same = [
            pair.tokens == alone.tokens
            and all(getattr(pair.counts, name) == getattr(alone.counts, name) for name in counts)
            for pair, alone in zip(turns["pair"], turns["policy"], strict=True)
        ]
        return {
            "prompt_tokens": tokens,
            "answer_tokens": answer,
            "repeats": repeats,
            "bytes_moved": statistics.median(moved) if moved else None,
            "answers_and_counts_as_policy": sum(same),
            "same_tokens_as_policy": [
                _same_beginning(pair.tokens, alone.tokens)
                for pair, alone in zip(turns["pair"], turns["policy"], strict=True)
            ],
            "counts": {name: getattr(turns["pair"][0].counts, name) for name in (*counts, "recomputed_rows")},
            "columns": {name: _figures(done) for name, done in turns.items()},
        }

    async def mixed(self, writers: int, answer: int, prompt: int, every: float) -> dict[str, Any]:
        """Gaps of writers while prompts come, one ``every`` so many seconds."""
        result: dict[str, Any] = {"writers": writers, "prompt_tokens": prompt, "every_seconds": every, "columns": {}}
        for name, engine in self.columns.items():
            writing = [asyncio.create_task(_turn(engine, self.ids(64), answer)) for _ in range(writers)]
            reading: list[asyncio.Task[_Turn]] = []
            while not all(task.done() for task in writing):
                reading.append(asyncio.create_task(_turn(engine, self.ids(prompt), 1)))
                await asyncio.wait(writing, timeout=every)
            turns, prompts = await asyncio.gather(*writing), await asyncio.gather(*reading)
            gaps = [gap for turn in turns for gap in turn.gaps]
            result["columns"][name] = {
                "tpot_ms": _ms(statistics.mean(gaps)),
                "itl_p50_ms": _ms(percentile(gaps, 0.5)),
                "itl_p95_ms": _ms(percentile(gaps, 0.95)),
                "prompts": len(prompts),
                "prompt_ttft_p50_ms": _ms(statistics.median(turn.ttft for turn in prompts)),
            }
        return result

    async def threads(
        self, turns: int, new: int, answer: int, *, kv_back: bool, forced: bool, beginnings: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Conversations of so many turns: what each column read, and how long it took. ``forced``: all write what the
        exact engine wrote, and how far their distributions are from its own is told, too; random weights mean nothing,
        and not all of vLLM's runners take scripts."""
        columns: dict[str, Engine] = {"exact": self.decode, "policy": self.prefill, "pair": self.pair}
        if kv_back:
            columns["pair, KV back"] = PairEngine(
                self.prefill, self.counted, lease_seconds=LEASE_SECONDS, kv_back=True, kv_back_seconds=self.kept_seconds
            )
        rows: dict[str, list[list[_Turn]]] = {}
        later = [[self.ids(new) for _ in range(turns - 1)] for _ in beginnings]
        for name, engine in columns.items():
            rows[name] = []
            for number, beginning in enumerate(beginnings):
                prompt, done = list(beginning), []
                for turn in range(turns):
                    settings: dict[str, Any] = {"logprobs": 20} if forced else {}
                    if forced and name != "exact":
                        settings["extra"] = _scripted(rows["exact"][number][turn].tokens)
                    done.append(await _turn(engine, prompt, answer, thread=f"{name}-{number}", **settings))
                    if turn < turns - 1:
                        prompt = [*prompt, *done[-1].tokens, *later[number][turn]]
                rows[name].append(done)
        figures: dict[str, dict[str, Any]] = {}
        for name, conversations in rows.items():
            after = [turn for conversation in conversations for turn in conversation[1:]]
            figures[name] = {
                "later_ttft_p50_ms": _ms(statistics.median(turn.ttft for turn in after)),
                "later_prefill_tokens": statistics.mean(turn.counts.prefill_tokens or 0 for turn in after),
                "later_quantized_tokens": statistics.mean(turn.counts.quantized_tokens or 0 for turn in after),
            }
            if forced:
                pairs = list(zip(conversations, rows["exact"], strict=True))
                figures[name] |= {
                    "as_forced": all(
                        turn.tokens == exact.tokens for one, two in pairs for turn, exact in zip(one, two, strict=True)
                    ),
                    "kl_by_turn": [
                        round(
                            statistics.mean(
                                kl_divergence(exact, other)
                                for one, two in pairs
                                for exact, other in zip(two[turn].logprobs, one[turn].logprobs, strict=True)
                            ),
                            6,
                        )
                        for turn in range(turns)
                    ],
                }
        return {
            "turns": turns,
            "threads": len(beginnings),
            "new_tokens": new,
            "answer_tokens": answer,
            "columns": figures,
        }


def _same_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _scripted(tokens: Sequence[int]) -> dict[str, Any]:
    from mixquant_agents.bench.scripted_logits import scripted  # imports torch and vLLM

    return scripted(tokens)


def _figures(turns: Sequence[_Turn]) -> dict[str, Any]:
    gaps = [gap for turn in turns for gap in turn.gaps]
    return {
        "ttft_p50_ms": _ms(statistics.median(turn.ttft for turn in turns)),
        "ttft_least_ms": _ms(min(turn.ttft for turn in turns)),
        "ttft_most_ms": _ms(max(turn.ttft for turn in turns)),
        "tpot_ms": _ms(statistics.mean(gaps)) if gaps else None,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _environments(*, gpus: bool) -> list[dict[str, str]]:
    """What each engine's process sees: a GPU of its own, or a thread."""
    if not gpus:
        return [ONE_THREAD, ONE_THREAD]
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",") if name.strip()]
    if len(visible) < 2:
        raise ConfigError(f"a pair needs two GPUs, and CUDA_VISIBLE_DEVICES={','.join(visible)!r} names {len(visible)}")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible[:2]]


def _connector(name: str, storage: str, kept_seconds: int, *, gpus: bool) -> dict[str, Any]:
    if name == "example":
        return {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": storage},
        }
    extra = {
        "kv_lease_duration": int(LEASE_SECONDS),
        "bidirectional_kv_xfer": True,
        "decoder_kv_blocks_ttl": kept_seconds,
        "kv_recompute_threshold": 1,
    }
    return {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cuda" if gpus else "cpu",
        "kv_connector_extra_config": extra,
    }


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Start both engines, and run what was asked for; the result is written after each part."""
    from vllm.platforms import current_platform

    from mixquant_agents.engine.vllm.checkpoint import kv_bytes_per_token, model_config, model_path

    gpus = bool(current_platform.is_cuda())
    lengths = [int(word) for word in given.lengths.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {}
        extra: dict[str, Any] = {
            "kv_transfer_config": _connector(given.connector, f"{scratch}/kv", given.kept_seconds, gpus=gpus)
        }
        path = given.model
        if given.model in SHAPES:
            path = str(model_folder(given.model, Path(scratch), given.tokenizer))
            settings |= {"tool_parser": None, "reasoning_parser": None}
            extra["load_format"] = "dummy"
        if given.turns and given.model not in SHAPES:
            from mixquant_agents.bench.scripted_logits import SCRIPTED_LOGITS

            extra["logits_processors"] = [SCRIPTED_LOGITS]
        if given.block:
            extra["block_size"] = given.block
        recomputed = 1 if given.connector == "nixl" else given.block + 1  # of whole blocks, not the last token's
        policy = PrecisionPolicy.of(given.policy)
        policy = policy.model_copy(update={"exact_last_token": True, "exact_last_tokens": recomputed})
        configs = [
            EngineConfig(
                model=path,
                policy=side,
                max_model_len=max(*lengths, given.mixed_prompt, given.turns * (given.new + given.turn_answer) + 512)
                + given.answer
                + 64,
                max_num_seqs=max(16, 2 * given.writers),
                kv_cache_bytes=int(given.kv_gib * 2**30),
                enable_prefix_caching=given.connector != "example",
                enforce_eager=given.eager or None,
                vllm_args=extra,
                **settings,
            )
            for side in (policy, PrecisionPolicy.of("exact"))
        ]
        text = model_config(model_path(configs[0])[0], configs[0])
        engines = [
            OwnProcessEngine(vllm_engine(config), environment)
            for config, environment in zip(configs, _environments(gpus=gpus), strict=True)
        ]
        result: dict[str, Any] = {
            "command": given.command,
            "date": datetime.now(UTC).date().isoformat(),
            "model": given.model,
            "connector": given.connector,
            "policy": given.policy,
        }

        def keep() -> None:
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")

        try:
            await asyncio.gather(*(engine.start() for engine in engines))
            prefill, decode = engines
            started = {"prefill": prefill.started, "decode": decode.started}
            token_bytes = kv_bytes_per_token(text, 2 if gpus else 4) or 0
            result |= {
                "device": decode.info.device,
                "start_seconds": {side: engine and round(engine.seconds or 0, 1) for side, engine in started.items()},
                "memory_bytes": {side: engine and engine.memory_bytes for side, engine in started.items()},
                "limits": {side: engine and engine.limits for side, engine in started.items()},
                "kv_bytes_per_token": token_bytes,
            }
            keep()
            bench = PairBench(prefill, decode, token_bytes, given.kept_seconds)
            for column in bench.columns.values():
                await _turn(column, bench.ids(max(lengths)), 4)  # whatever happens once, happens now
            result["reading"] = []
            for tokens in lengths:
                result["reading"].append(await bench.reading(tokens, given.answer, given.repeats))
                keep()
            probes = Probes() if gpus else Probes(rows=(32, 64, 128, 256), tokens=24, beside_writer=(64, 128, 256))
            result["latency_seconds"] = {
                name: round(await engine.run(measure_latency, probes), 6)
                for name, engine in (("policy", prefill), ("exact", decode))
            }
            if given.writers:
                result["mixed"] = await bench.mixed(given.writers, given.mixed_answer, given.mixed_prompt, given.every)
                keep()
            if given.turns:
                beginnings: list[Sequence[int]] = [bench.ids(given.new) for _ in range(given.threads)]
                if given.model not in SHAPES:
                    beginnings = [
                        await decode.render(
                            EngineRequest(request_id="", messages=[{"role": "user", "content": question}])
                        )
                        for question in _QUESTIONS[: given.threads]
                    ]
                result["threads"] = await bench.threads(
                    given.turns,
                    given.new,
                    given.turn_answer,
                    kv_back=given.connector == "nixl",
                    forced=given.model not in SHAPES,
                    beginnings=beginnings,
                )
                keep()
        finally:
            await asyncio.gather(*(engine.aclose() for engine in engines))
        return result


_QUESTIONS = (
    "Explain how a sailing boat can move against the wind.",
    "Write a short story about a lighthouse keeper and a whale.",
    "What should one look at when buying a used bicycle?",
    "Describe the water cycle to a child of ten years.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mixquant_agents.bench.pair", description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer a shape borrows")
    parser.add_argument("--policy", default="mixquant-int8", help="the reading engine's")
    parser.add_argument("--connector", default="nixl", choices=("nixl", "example"))
    parser.add_argument("--lengths", default="256,1024", help="tokens of the cold prompts")
    parser.add_argument("--answer", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--writers", type=int, default=0, help="who write while prompts come; 0 leaves this out")
    parser.add_argument("--mixed-answer", type=int, default=64)
    parser.add_argument("--mixed-prompt", type=int, default=512)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=5, help="of the conversations; 0 leaves them out")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--new", type=int, default=48, help="tokens that come new with each turn")
    parser.add_argument("--turn-answer", type=int, default=48)
    parser.add_argument("--block", type=int, default=0, help="tokens of a block of the KV cache; 0 for vLLM's choice")
    parser.add_argument("--kv-gib", type=float, default=0.5)
    parser.add_argument(
        "--kept-seconds",
        type=int,
        default=60,
        help="how long the writing engine keeps an answer's KV; its cache must hold it",
    )
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    words = arguments if arguments is not None else sys.argv[1:]
    given.command = " ".join(["python -m mixquant_agents.bench.pair", *words])
    result = asyncio.run(measure(given))
    print(json.dumps(result, indent=1))  # noqa: T201 - the result is what this program is for


if __name__ == "__main__":
    main()
