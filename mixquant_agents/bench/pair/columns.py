"""What is measured of a pair and of each of its engines alone: cold reading, writing beside prompts, conversations."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from mixquant_agents.bench.pair.turn import (
    MeasuredTurn,
    common_beginning,
    kl_divergence,
    latencies,
    milliseconds,
    run_turn,
)
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.pair import PairEngine
from mixquant_agents.records import TurnCounts, percentile

__all__ = ["LEASE_SECONDS", "PairBench"]

LEASE_SECONDS = 120.0
"""How long the reading engine keeps KV that was not fetched."""

VOCABULARY = (1000, 40_000)
"""Range that token ids are drawn from."""

_COUNTS = ("prompt_tokens", "cached_tokens", "prefill_tokens", "quantized_tokens", "exact_tokens")

Conversations = list[list[MeasuredTurn]]
"""By conversation and turn."""


class _CountedEngine(Engine):
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


class PairBench:
    """Two engines, alone and as a pair.

    Args:
        prefill, decode: the reading and the writing engine.
        token_bytes: bytes of a token's KV.
        kept_seconds: how long the writing engine keeps an answer's KV.
        seed: of the prompts.
    """

    def __init__(self, prefill: Engine, decode: Engine, token_bytes: int, kept_seconds: float, seed: int = 0) -> None:
        self.prefill, self.decode, self.token_bytes, self.kept_seconds = prefill, decode, token_bytes, kept_seconds
        self._counted = _CountedEngine(decode)
        self.columns: Mapping[str, Engine] = {
            "pair": PairEngine(prefill, self._counted, lease_seconds=LEASE_SECONDS),
            "policy": prefill,
            "exact": decode,
        }
        self._draw = random.Random(seed)  # noqa: S311 - prompts that mean nothing

    def ids(self, count: int) -> list[int]:
        """Token ids that no prefix cache knows."""
        return self._draw.choices(range(*VOCABULARY), k=count)

    async def reading(self, tokens: int, answer: int, repeats: int) -> dict[str, Any]:
        """Cold prompts of so many tokens: TTFT, TPOT, rows, bytes moved, and whether the pair answers as ``policy``."""
        turns: dict[str, list[MeasuredTurn]] = {name: [] for name in self.columns}
        moved: list[int] = []
        for number, prompt in enumerate([self.ids(tokens) for _ in range(repeats)]):
            names = list(self.columns)
            for name in (*names[number % 3 :], *names[: number % 3]):  # no column is always first
                turns[name].append(await run_turn(self.columns[name], prompt, answer))
                if name == "pair" and self._counted.counts is not None:
                    moved.append((self._counted.counts.cached_tokens or 0) * self.token_bytes)
        both = list(zip(turns["pair"], turns["policy"], strict=True))
        return {
            "prompt_tokens": tokens,
            "answer_tokens": answer,
            "repeats": repeats,
            "bytes_moved": statistics.median(moved) if moved else None,
            "answers_and_counts_as_policy": sum(
                pair.tokens == alone.tokens
                and all(getattr(pair.counts, count) == getattr(alone.counts, count) for count in _COUNTS)
                for pair, alone in both
            ),
            "same_tokens_as_policy": [common_beginning(pair.tokens, alone.tokens) for pair, alone in both],
            "counts": {count: getattr(turns["pair"][0].counts, count) for count in (*_COUNTS, "recomputed_rows")},
            "columns": {name: latencies(measured) for name, measured in turns.items()},
        }

    async def mixed(self, writers: int, answer: int, prompt: int, every: float) -> dict[str, Any]:
        """Gaps of writers while prompts come, one ``every`` so many seconds."""
        result: dict[str, Any] = {"writers": writers, "prompt_tokens": prompt, "every_seconds": every, "columns": {}}
        for name, engine in self.columns.items():
            writing = [asyncio.create_task(run_turn(engine, self.ids(64), answer)) for _ in range(writers)]
            reading: list[asyncio.Task[MeasuredTurn]] = []
            while not all(task.done() for task in writing):
                reading.append(asyncio.create_task(run_turn(engine, self.ids(prompt), 1)))
                await asyncio.wait(writing, timeout=every)
            turns, prompts = await asyncio.gather(*writing), await asyncio.gather(*reading)
            gaps = [gap for turn in turns for gap in turn.gaps]
            result["columns"][name] = {
                "tpot_ms": milliseconds(statistics.mean(gaps)),
                "itl_p50_ms": milliseconds(percentile(gaps, 0.5)),
                "itl_p95_ms": milliseconds(percentile(gaps, 0.95)),
                "prompts": len(prompts),
                "prompt_ttft_p50_ms": milliseconds(statistics.median(turn.ttft for turn in prompts)),
            }
        return result

    async def threads(
        self, turns: int, new: int, answer: int, *, kv_back: bool, forced: bool, beginnings: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Conversations of ``turns`` turns: what each column read, and how long it took.

        Args:
            new: tokens that come new with each turn after the first.
            answer: tokens of each answer.
            kv_back: one column more, in which the pair fetches an answer's KV from the writing engine.
            forced: all columns write what the exact engine wrote, and ``kl_by_turn`` says how far their distributions
                are from its own. Not for random weights, whose distributions mean nothing.
            beginnings: the first prompt of each conversation, token ids.
        """
        columns: dict[str, Engine] = {"exact": self.decode, "policy": self.prefill, "pair": self.columns["pair"]}
        if kv_back:
            columns["pair, KV back"] = PairEngine(
                self.prefill,
                self._counted,
                lease_seconds=LEASE_SECONDS,
                kv_back=True,
                kv_back_seconds=self.kept_seconds,
            )
        additions = [[self.ids(new) for _ in range(turns - 1)] for _ in beginnings]
        measured: dict[str, Conversations] = {}
        for name, engine in columns.items():
            measured[name] = [
                await _conversation(
                    engine,
                    f"{name}-{number}",
                    beginning,
                    additions[number],
                    answer,
                    forced=forced,
                    script=measured["exact"][number] if forced and name != "exact" else None,
                )
                for number, beginning in enumerate(beginnings)
            ]
        return {
            "turns": turns,
            "threads": len(beginnings),
            "new_tokens": new,
            "answer_tokens": answer,
            "columns": {
                name: _later_turns(conversations)
                | (_beside_exact(conversations, measured["exact"], turns) if forced else {})
                for name, conversations in measured.items()
            },
        }


async def _conversation(
    engine: Engine,
    thread: str,
    beginning: Sequence[int],
    additions: Sequence[Sequence[int]],
    answer: int,
    *,
    forced: bool,
    script: Sequence[MeasuredTurn] | None,
) -> list[MeasuredTurn]:
    """Its turns: the prompt of each is the one before with its answer and the next of ``additions``. The answers are
    those of ``script``, where there is one."""
    prompt, turns = list(beginning), list[MeasuredTurn]()
    for number in range(len(additions) + 1):
        sampling: dict[str, Any] = {"logprobs": 20} if forced else {}
        if script is not None:
            sampling["extra"] = _scripted(script[number].tokens)
        turns.append(await run_turn(engine, prompt, answer, thread=thread, **sampling))
        if number < len(additions):
            prompt = [*prompt, *turns[-1].tokens, *additions[number]]
    return turns


def _scripted(tokens: Sequence[int]) -> dict[str, Any]:
    from mixquant_agents.bench.scripted_logits import scripted  # imports torch and vLLM

    return scripted(tokens)


def _later_turns(conversations: Conversations) -> dict[str, Any]:
    """TTFT and rows of all turns but the first of each conversation, and in how many of them the reading engine had KV
    of the answer before: a fetch that fails shows in nothing else."""
    had = [
        (turn.counts.cached_tokens or 0) > (earlier.counts.prompt_tokens or 0)
        for conversation in conversations
        for earlier, turn in itertools.pairwise(conversation)
    ]
    later = [turn for conversation in conversations for turn in conversation[1:]]
    return {
        "later_turns": len(later),
        "later_turns_with_answers_kv": sum(had),
        "later_ttft_p50_ms": milliseconds(statistics.median(turn.ttft for turn in later)),
        "later_prefill_tokens": statistics.mean(turn.counts.prefill_tokens or 0 for turn in later),
        "later_quantized_tokens": statistics.mean(turn.counts.quantized_tokens or 0 for turn in later),
    }


def _beside_exact(conversations: Conversations, exact: Conversations, turns: int) -> dict[str, Any]:
    """Whether all wrote what the exact engine wrote, and the mean divergence of each turn's tokens, nats."""
    pairs = [
        list(zip(conversation, exact_conversation, strict=True))
        for conversation, exact_conversation in zip(conversations, exact, strict=True)
    ]
    return {
        "as_forced": all(turn.tokens == exact_turn.tokens for pair in pairs for turn, exact_turn in pair),
        "kl_by_turn": [
            round(
                statistics.mean(
                    kl_divergence(exact_token, token)
                    for turn, exact_turn in (pair[number] for pair in pairs)
                    for exact_token, token in zip(exact_turn.logprobs, turn.logprobs, strict=True)
                ),
                6,
            )
            for number in range(turns)
        ],
    }
