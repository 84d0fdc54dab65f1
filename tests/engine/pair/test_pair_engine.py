"""``PairEngine`` on two sides that are told what to say: requests, the merged record, and each failure's own error."""

import asyncio
import pickle
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, PairEngine
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.pair.engine import KV_BACK_MARGIN
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    KvLostError,
    ModelNotFoundError,
    PairError,
    RemoteEngineError,
    RequestError,
)
from mixquant_agents.records import TurnCounts, TurnTimes

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
PLACE = {"remote_block_ids": [[1, 2]], "remote_engine_id": "p", "remote_num_tokens": 20}
READ = TurnCounts(
    prompt_tokens=20, cached_tokens=4, prefill_tokens=16, quantized_tokens=15, exact_tokens=1, decode_tokens=1
)
WROTE = TurnCounts(
    prompt_tokens=20, cached_tokens=19, prefill_tokens=1, quantized_tokens=0, exact_tokens=1, decode_tokens=3
)


class Side(Engine):
    """Answers "Hello"; keeps what it was asked."""

    def __init__(self, name: str, **info: Any) -> None:
        self._info = EngineInfo(**{"engine": name, "model": "m", "token_ids": True, **info})
        self.requests: list[EngineRequest] = []
        self.counts: TurnCounts | None = READ
        self.times: TurnTimes | None = None
        self.kv_transfer: dict[str, Any] | None = dict(PLACE)
        self.failure: Exception | None = None
        self.fails_after = 0
        self.delay = 0.0
        self.closed = False
        self.left = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def render(self, request: EngineRequest) -> Sequence[int]:
        return [len(message["content"]) for message in request.messages for _ in range(20)]

    async def start(self) -> None:
        if isinstance(self.failure, RemoteEngineError) and self.fails_after < 0:
            raise self.failure

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        try:
            await asyncio.sleep(self.delay)
            for index, text in enumerate(("Hel", "lo")):
                if self.failure is not None and index >= self.fails_after:
                    raise self.failure
                yield Delta(content=text, token_ids=(index,))
            yield Delta(
                finish_reason="stop",
                counts=self.counts,
                times=self.times,
                kv_transfer=self.kv_transfer,
                prompt_token_ids=request.prompt_token_ids,
            )
        finally:
            self.left.set()

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def prefill() -> Side:
    return Side("vllm", policy="mixquant-int8", prefill_format="int8", emulated=True, device="cpu", max_model_len=100)


@pytest.fixture
def decode() -> Side:
    made = Side("vllm", decode_format="exact", device="cpu", max_model_len=200)
    made.counts, made.kv_transfer = WROTE, None
    return made


@pytest.fixture
def pair(prefill: Side, decode: Side) -> PairEngine:
    return PairEngine(prefill, decode)


def ask(text: str = "hi", **fields: Any) -> EngineRequest:
    return EngineRequest(request_id="r", messages=[{"role": "user", "content": text}], **fields)


async def read(engine: Engine, request: EngineRequest | None = None) -> list[Delta]:
    return [delta async for delta in engine.stream(request or ask())]


async def test_turn_is_read_by_one_side_and_written_by_the_other(pair: PairEngine, prefill: Side, decode: Side) -> None:
    schema = {"type": "object"}
    deltas = await read(pair, ask(tools=[ADD], tool_choice="required", schema=schema, cache_salt="s", thread_id="t"))
    assert "".join(delta.content for delta in deltas) == "Hello"
    (asked,), (handed_on,) = prefill.requests, decode.requests
    assert asked.kv_transfer == {"do_remote_decode": True, "do_remote_prefill": False}
    assert (asked.sampling.max_tokens, asked.schema, asked.tool_choice) == (1, None, "none")
    assert (asked.tools, asked.messages, asked.cache_salt) == (handed_on.tools, handed_on.messages, "s")
    assert handed_on.kv_transfer == PLACE
    assert (handed_on.tool_choice, handed_on.schema, handed_on.thread_id) == ("required", schema, "t")


async def test_counts_of_both_sides_become_one(pair: PairEngine) -> None:
    counts = (await read(pair))[-1].counts
    assert counts == TurnCounts(
        prompt_tokens=20,
        cached_tokens=4,
        prefill_tokens=16,
        quantized_tokens=15,
        exact_tokens=1,
        decode_tokens=3,
        recomputed_rows=1,
    ), "the last prompt token, which decode runs again, is said"


async def test_last_prompt_token_is_run_again_also_where_vllm_counts_it_as_cached(
    pair: PairEngine, prefill: Side, decode: Side
) -> None:
    prefill.kv_transfer = {**PLACE, "remote_prefill_cached_tokens": 4}
    decode.counts = WROTE.model_copy(update={"cached_tokens": 20, "prefill_tokens": 0, "exact_tokens": 0})
    assert (await read(pair))[-1].counts.recomputed_rows == 1
    assert decode.requests[0].kv_transfer == PLACE, "vLLM would tell the prefill side's cached tokens as its own"


async def test_counts_that_contradict_each_other_are_unknown(pair: PairEngine, prefill: Side, decode: Side) -> None:
    prefill.kv_transfer = None
    decode.counts = WROTE.model_copy(update={"prompt_tokens": 21})
    assert (await read(pair))[-1].counts == TurnCounts(decode_tokens=3)
    decode.counts = TurnCounts(decode_tokens=3)
    counts = (await read(pair))[-1].counts
    assert (counts.prompt_tokens, counts.recomputed_rows) == (20, None)


async def test_kv_of_another_prompt_fails_the_turn(pair: PairEngine, decode: Side) -> None:
    """A side with another template: the KV that was handed on belongs to other tokens than the decode side has."""
    decode.counts = WROTE.model_copy(update={"prompt_tokens": 21})
    with pytest.raises(PairError, match="prompts of 20 and 21 tokens of one request, and what was given out") as caught:
        await read(pair)
    assert (caught.value.side, caught.value.retryable) == ("transfer", False)


async def test_kv_of_other_tokens_fails_before_anything_is_given_out(
    pair: PairEngine, prefill: Side, decode: Side
) -> None:
    stream = decode.stream

    async def other(request: EngineRequest) -> AsyncGenerator[Delta, None]:
        async for delta in stream(replace(request, prompt_token_ids=None)):
            delta.prompt_token_ids = (1, 2, 4)
            yield delta

    decode.stream = other  # type: ignore[method-assign]
    got: list[Delta] = []

    async def turn() -> None:
        async for delta in pair.stream(ask(prompt_token_ids=(1, 2, 3))):
            got.append(delta)  # noqa: PERF401 - what came before the error is wanted

    with pytest.raises(PairError, match="prompts of different tokens of one request;"):
        await turn()
    assert got == []


async def test_transfer_is_the_time_between_the_sides_first_tokens(
    pair: PairEngine, prefill: Side, decode: Side
) -> None:
    decode.delay = 0.05
    prefill.times = TurnTimes(queue_seconds=0.0, prefill_seconds=0.0, timing_source="engine")
    times = (await read(pair))[-1].times
    assert times.transfer_seconds >= 0.05
    assert times.ttft_seconds == pytest.approx(times.transfer_seconds + times.delivery_seconds)
    assert times.timing_source == "engine"
    prefill.times = TurnTimes(total_seconds=0.0, timing_source="client")
    times = (await read(pair))[-1].times
    assert times.transfer_seconds >= 0.05
    assert (times.queue_seconds, times.timing_source) == (None, "client")
    prefill.times = TurnTimes(queue_seconds=9.0, prefill_seconds=9.0, timing_source="engine")
    assert (await read(pair))[-1].times.transfer_seconds is None, "times that do not fit tell nothing"


async def test_record_says_pair(pair: PairEngine) -> None:
    answer = await MixQuantChatModel(engine=pair).ainvoke("hi")
    turn = answer.response_metadata["turn"]
    wanted = {
        "engine": "pair",
        "policy": "mixquant-int8",
        "prefill_format": "int8",
        "decode_format": "exact",
        "emulated": True,
        "device": "cpu",
        "quantized_tokens": 15,
        "recomputed_rows": 1,
    }
    assert {name: turn[name] for name in wanted} == wanted
    assert pair.info.max_model_len == 100
    await pair.aclose()
    assert pair.prefill.closed
    assert pair.decode.closed


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_dead_side_is_named(pair: PairEngine, prefill: Side, decode: Side, side: str) -> None:
    dead = prefill if side == "prefill" else decode
    dead.failure = RemoteEngineError("http://a cannot be reached", retryable=True)
    with pytest.raises(PairError, match=f"the {side} engine of the pair failed: http://a cannot be reached") as caught:
        await read(pair)
    assert (caught.value.side, caught.value.retryable) == (side, True)
    assert pickle.loads(pickle.dumps(caught.value)).side == side  # noqa: S301 - our own
    dead.fails_after = -1
    with pytest.raises(PairError, match=side):
        await pair.start()


async def test_side_that_dies_in_the_answer_is_not_retryable(pair: PairEngine, decode: Side) -> None:
    decode.failure, decode.fails_after = RemoteEngineError("gone", retryable=False), 1
    with pytest.raises(PairError) as caught:
        await read(pair)
    assert not caught.value.retryable


async def test_wrong_request_stays_a_request_error(pair: PairEngine, prefill: Side, decode: Side) -> None:
    prefill.failure = RequestError("temperature")
    with pytest.raises(RequestError, match="temperature"):
        await read(pair)
    assert decode.requests == []


async def test_kv_that_did_not_arrive_fails_the_turn(pair: PairEngine, decode: Side) -> None:
    decode.failure = RemoteEngineError("http://b reported an error: KV load failed", status=500)
    with pytest.raises(KvLostError, match="KV did not reach the decode engine") as caught:
        await read(pair)
    assert caught.value.retryable


async def test_expired_blocks_are_never_answered_from(prefill: Side, decode: Side) -> None:
    now = [0.0]
    pair = PairEngine(prefill, decode, lease_seconds=5, clock=lambda: now[0])
    stream = decode.stream

    async def slow(request: EngineRequest) -> AsyncGenerator[Delta, None]:
        async for delta in stream(request):
            now[0] += 6  # the decode side was busy for longer than the blocks are kept
            yield delta

    decode.stream = slow  # type: ignore[method-assign]
    got: list[Delta] = []

    async def turn() -> None:
        async for delta in pair.stream(ask()):
            got.append(delta)  # noqa: PERF401 - what came before the error is wanted

    with pytest.raises(KvLostError, match="lease_seconds"):
        await turn()
    assert got == []


async def test_cancel_between_the_sides_leaves_both(pair: PairEngine, prefill: Side, decode: Side) -> None:
    decode.delay = 30
    task = asyncio.create_task(read(pair))
    await prefill.left.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert decode.left.is_set()


async def test_answers_kv_goes_back_where_its_tokens_are_repeated(prefill: Side, decode: Side) -> None:
    pair = PairEngine(prefill, decode, kv_back=True)
    decode.kv_transfer = {"remote_block_ids": [[7]], "remote_num_tokens": 21, "do_remote_decode": True}
    first = tuple(range(20))
    await read(pair, ask(thread_id="t", prompt_token_ids=first))
    await read(pair, ask(thread_id="t", prompt_token_ids=(*first, 0, 1, 50, 51)))
    assert prefill.requests[0].kv_transfer == {"do_remote_decode": True, "do_remote_prefill": False}
    assert prefill.requests[1].kv_transfer == {**decode.kv_transfer, "do_remote_prefill": False}
    await read(pair, ask(thread_id="t", prompt_token_ids=(*first, 9, 1, 50, 51)))
    assert "remote_block_ids" not in prefill.requests[2].kv_transfer, "the template wrote it in other tokens"
    await read(pair, ask(thread_id="other", prompt_token_ids=(*first, 9)))
    assert "remote_block_ids" not in prefill.requests[3].kv_transfer
    await read(pair, ask("four", thread_id="t"))
    assert prefill.requests[4].prompt_token_ids == [4] * 20, "rendered once, for both sides"


async def test_kv_that_vllm_would_decline_is_not_offered(prefill: Side, decode: Side) -> None:
    """vLLM declines it in the last seconds that it is kept, and fails the request: read again, and later."""
    now = 0.0
    pair = PairEngine(prefill, decode, kv_back=True, kv_back_seconds=60, clock=lambda: now)
    decode.kv_transfer = {"remote_block_ids": [[7]], "remote_num_tokens": 21}
    offered = []
    for age in (54.9, 55.0):
        await read(pair, ask(thread_id="t", prompt_token_ids=tuple(range(20))))
        now += age
        await read(pair, ask(thread_id="t", prompt_token_ids=(*range(20), 0, 1, 50, 51)))
        offered.append("remote_block_ids" in prefill.requests[-1].kv_transfer)
        pair._forget()
    assert offered == [True, False]
    with pytest.raises(ConfigError, match="kv_back_seconds=5"):
        PairEngine(prefill, decode, kv_back=True, kv_back_seconds=5)


def test_margin_is_vllm_s() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import pull_worker

    assert pull_worker._KV_BLOCKS_EXPIRY_SAFETY_MARGIN == KV_BACK_MARGIN


async def test_decode_side_without_its_kv_is_no_failure_of_that_engine(
    pair: PairEngine, prefill: Side, decode: Side
) -> None:
    decode.failure = KvLostError("it did not come", retryable=True)
    with pytest.raises(KvLostError, match="it did not come") as caught:
        await read(pair)
    assert caught.value.retryable


def test_sides_that_do_not_fit_are_refused(prefill: Side, decode: Side) -> None:
    with pytest.raises(ConfigError, match="same engine"):
        PairEngine(prefill, prefill)
    with pytest.raises(ConfigError, match="not decode='m'; see PairEngine"):
        PairEngine(prefill, "m")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'m' and decode= 'n'"):
        PairEngine(prefill, Side("vllm", model="n"))
    with pytest.raises(ConfigError, match="lease_seconds"):
        PairEngine(prefill, decode, lease_seconds=0)
    decode._info = replace(decode.info, token_ids=False)
    with pytest.raises(ConfigError, match="token ids"):
        PairEngine(prefill, decode, kv_back=True)


async def test_pair_of_servers_names_them() -> None:
    pair = PairEngine.of_servers("m", prefill_url="http://127.0.0.1:9/v1", decode_url="http://127.0.0.1:8/v1")
    assert (pair.info.engine, pair.info.policy) == ("pair", "mixquant")
    assert pair.info.base_url == "http://127.0.0.1:8/v1"
    copy = pickle.loads(pickle.dumps(pair))  # noqa: S301 - our own
    assert copy.info == pair.info
    await pair.aclose()


@pytest.mark.parametrize("kv_back", [False, True])
async def test_both_sides_render_by_the_template(prefill: Side, decode: Side, kv_back: bool) -> None:
    """The decode side alone wrote the earlier answers: with their tokens in its prompt, and the template's in the
    prefill side's, the KV would be another prompt's."""
    await read(PairEngine(prefill, decode, kv_back=kv_back))
    assert [asked.verbatim_history for asked in (*prefill.requests, *decode.requests)] == [False, False]


async def test_lease_begins_when_the_prompt_was_read_and_not_when_that_was_heard(prefill: Side, decode: Side) -> None:
    """A proxy's buffer may keep the news for longer than the blocks live."""
    pair = PairEngine(prefill, decode, lease_seconds=5)
    prefill.times = TurnTimes(delivery_seconds=6.0)
    with pytest.raises(KvLostError, match="waited longer") as caught:
        await read(pair)
    assert caught.value.retryable
    assert decode.requests == []


async def after_a_turn(prefill: Side, decode: Side) -> PairEngine:
    """A pair that takes KV back, behind a turn of thread "t" whose prompt was tokens 0 to 19."""
    pair = PairEngine(prefill, decode, kv_back=True)
    decode.kv_transfer = {"remote_block_ids": [[7]], "remote_num_tokens": 21}
    await read(pair, ask(thread_id="t", prompt_token_ids=tuple(range(20))))
    return pair


async def test_kv_back_that_is_gone_is_read_again(
    prefill: Side, decode: Side, caplog: pytest.LogCaptureFixture
) -> None:
    pair = await after_a_turn(prefill, decode)
    stream = prefill.stream

    async def evicted(request: EngineRequest) -> AsyncGenerator[Delta, None]:
        if "remote_block_ids" in (request.kv_transfer or {}):
            prefill.requests.append(request)
            raise RemoteEngineError("KV load failed: block 7 is gone", status=500, retryable=True)
        async for delta in stream(request):
            yield delta

    prefill.stream = evicted  # type: ignore[method-assign]
    deltas = await read(pair, ask(thread_id="t", prompt_token_ids=(*range(20), 0, 1, 50, 51)))
    assert "".join(delta.content for delta in deltas) == "Hello"
    assert ["remote_block_ids" in (asked.kv_transfer or {}) for asked in prefill.requests] == [False, True, False]
    assert "read without the KV of the answer before it" in caplog.text


async def test_kv_of_an_answer_is_offered_by_one_process_alone(
    prefill: Side, decode: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fetch frees it: a copy, pickled or forked, would fetch another turn's."""
    pair = await after_a_turn(prefill, decode)
    state = pair.__getstate__()
    copy = PairEngine.__new__(PairEngine)
    copy.__setstate__(state)
    assert copy._kept == {}
    assert list(pair._kept) == ["t"]
    monkeypatch.setattr("os.getpid", lambda: -1)
    await read(pair, ask(thread_id="t", prompt_token_ids=(*range(20), 0, 1, 50, 51)))
    assert "remote_block_ids" not in prefill.requests[-1].kv_transfer


async def test_prompt_that_the_prefill_side_gives_up_is_sent_again(pair: PairEngine, prefill: Side) -> None:
    async def stopping(request: EngineRequest) -> AsyncGenerator[Delta, None]:
        yield Delta(finish_reason="abort")

    prefill.stream = stopping  # type: ignore[method-assign]
    with pytest.raises(PairError, match="gave the prompt up") as caught:
        await read(pair)
    assert (caught.value.side, caught.value.retryable) == ("prefill", True)


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ModelNotFoundError("http://a does not serve model 'm'"), False),
        (EngineClosedError("closed"), False),
        (EngineDeadError("dead; the next call starts a new one"), True),
        (RemoteEngineError("busy", status=503, retryable=True), True),
        (RemoteEngineError("slow", status=408), False),
    ],
)
async def test_trouble_that_lasts_is_not_retryable(
    pair: PairEngine, prefill: Side, error: Exception, retryable: bool
) -> None:
    prefill.failure = error
    with pytest.raises(PairError) as caught:
        await read(pair)
    assert caught.value.retryable is retryable


@pytest.mark.parametrize(("kv", "words"), [(None, "nothing of KV to hand on"), (PLACE, "took none of it")])
async def test_pair_whose_sides_never_meet_is_told_once(
    pair: PairEngine, prefill: Side, decode: Side, caplog: pytest.LogCaptureFixture, kv: Any, words: str
) -> None:
    """No connector on one side, or a handshake that fails: each turn is right, and read twice."""
    prefill.kv_transfer, prefill.counts = kv, TurnCounts(prompt_tokens=200)
    decode.counts = TurnCounts(prompt_tokens=200, cached_tokens=0, prefill_tokens=200)
    for _ in range(2):
        assert (await read(pair))[-1].counts.recomputed_rows == 200
    assert caplog.text.count("the decode engine read a prompt of 200 tokens itself") == 1
    assert words in caplog.text


async def test_second_side_is_closed_though_the_first_one_fails_to(
    pair: PairEngine, prefill: Side, decode: Side
) -> None:
    async def stuck() -> None:
        raise RemoteEngineError("stuck")

    prefill.aclose = stuck  # type: ignore[method-assign]
    with pytest.raises(RemoteEngineError, match="stuck"):
        await pair.aclose()
    assert decode.closed
