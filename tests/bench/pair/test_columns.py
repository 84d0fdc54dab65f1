"""The pair's bench on engines that cost nothing: what is asked of which side, and what is made of it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence

import pytest

from mixquant_agents.bench.pair import PairBench, kl_divergence
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest, TokenLogprob
from mixquant_agents.records import TurnCounts

LIKELY = TokenLogprob("a", math.log(0.8), (("a", math.log(0.8)), ("b", math.log(0.1))))
UNSURE = TokenLogprob("a", math.log(0.5), (("a", math.log(0.5)), ("b", math.log(0.4))))


class Side(Engine):
    """Writes as many tokens as are asked for; what a connector brought counts as cached."""

    def __init__(self, name: str, logprob: TokenLogprob) -> None:
        self._name, self._logprob = name, logprob
        self.requests: list[EngineRequest] = []
        self.known: dict[str, int] = {}

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(engine=self._name, model="m", token_ids=True)

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        prompt: Sequence[int] = request.prompt_token_ids or ()
        transfer = request.kv_transfer or {}
        remote = len(prompt) if transfer.get("do_remote_prefill") else transfer.get("remote_num_tokens", 0)
        cached = max(remote, self.known.get(request.cache_salt or "", 0))
        new = len(prompt) - cached
        script = (request.sampling.extra.get("extra_args") or {}).get("mixquant_script", ())
        for number in range(request.sampling.max_tokens or 0):
            await asyncio.sleep(0)
            token = script[number] if script else number
            yield Delta(token_ids=(token,), logprobs=(self._logprob,) if request.sampling.logprobs else ())
        self.known[request.cache_salt or ""] = len(prompt)
        reads = transfer.get("do_remote_decode")
        there = {"do_remote_prefill": True} if reads else {"do_remote_decode": True}
        yield Delta(
            finish_reason="length",
            counts=TurnCounts(
                prompt_tokens=len(prompt),
                cached_tokens=cached,
                prefill_tokens=new,
                quantized_tokens=new,
                exact_tokens=0,
                decode_tokens=request.sampling.max_tokens,
            ),
            prompt_token_ids=prompt,
            kv_transfer={**there, "remote_num_tokens": len(prompt) + (request.sampling.max_tokens or 0) - 1},
        )


@pytest.fixture
def bench() -> PairBench:
    return PairBench(Side("reads", UNSURE), Side("writes", LIKELY), token_bytes=10, kept_seconds=60)


async def test_reading_counts_what_was_moved_and_where_the_pair_answers_as_one(bench: PairBench) -> None:
    reading = await bench.reading(100, 8, 3)
    assert reading["bytes_moved"] == 1000
    assert reading["answers_and_counts_as_policy"] == 3
    assert reading["counts"]["recomputed_rows"] == 1
    assert set(reading["columns"]) == {"pair", "policy", "exact"}
    salts = [request.cache_salt for request in bench.prefill.requests]
    assert len(set(salts)) == len(salts), "no turn finds another's blocks"


async def test_prompts_come_while_all_write(bench: PairBench) -> None:
    mixed = await bench.mixed(2, 50, 30, 0.001)
    for column in mixed["columns"].values():
        assert column["prompts"] >= 1
        assert column["itl_p95_ms"] >= column["itl_p50_ms"]


async def test_kv_back_saves_the_reading_of_answers(bench: PairBench) -> None:
    threads = await bench.threads(3, 20, 8, kv_back=True, forced=True, beginnings=[list(range(50))])
    columns = threads["columns"]
    assert columns["pair"]["later_prefill_tokens"] == 28, "the answer, and what is new"
    assert columns["pair, KV back"]["later_prefill_tokens"] == 21, "the last token of an answer has no KV yet"
    had = {name: columns[name]["later_turns_with_answers_kv"] for name in ("pair", "pair, KV back")}
    assert had == {"pair": 0, "pair, KV back": 2}, "a fetch that fails would be 0 of 2 there, too"
    assert all(column["as_forced"] for column in columns.values())
    assert columns["exact"]["kl_by_turn"] == [0, 0, 0]
    assert columns["policy"]["kl_by_turn"] == [round(kl_divergence(LIKELY, UNSURE), 6)] * 3
    assert columns["pair"]["kl_by_turn"] == [0, 0, 0], "the exact side writes"


async def test_random_weights_are_neither_forced_nor_judged(bench: PairBench) -> None:
    threads = await bench.threads(2, 20, 8, kv_back=False, forced=False, beginnings=[list(range(50))])
    assert set(threads["columns"]) == {"exact", "policy", "pair"}
    assert "kl_by_turn" not in threads["columns"]["pair"]
