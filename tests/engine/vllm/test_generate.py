"""One turn's counts and times, and what reaches the caller, on a stand-in for ``AsyncLLM``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.parsing import TokenDelta
from mixquant_agents.engine.vllm.generate import StepMeter, generate
from mixquant_agents.engine.vllm.row_counts import RowCountClient
from mixquant_agents.errors import EngineError, KvLostError

PLAIN = SimpleNamespace(extra_args=None, structured_outputs=None)
"""vLLM's sampling parameters, as far as a turn that fails is told by them."""


def stats(scheduled: float, first: float, last: float, preemptions: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        arrival_time=1.7e9,  # wall clock: must not be used
        queued_ts=scheduled,
        scheduled_ts=scheduled,
        first_token_ts=first,
        last_token_ts=last,
        num_preemptions=preemptions,
    )


def output(
    tokens: list[int], text: str = "", *, reason: str | None = None, metrics: Any = None, cached: int = 0
) -> Any:
    completion = SimpleNamespace(text=text, token_ids=tokens, logprobs=None, finish_reason=reason, stop_reason=None)
    return SimpleNamespace(outputs=[completion], finished=reason is not None, metrics=metrics, num_cached_tokens=cached)


class FakeLlm:
    """Plays a script of outputs; remembers RPCs and whether the stream was closed early."""

    def __init__(self, script: list[Any], rows: dict[str, dict[str, int]] | None = None) -> None:
        self.script, self.rows = script, rows or {}
        self.calls: list[tuple[str, list[str]]] = []
        self.ended = ""
        self.errored = False

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        try:
            for item in self.script:
                await asyncio.sleep(0)
                yield item
            self.ended = "all"
        except GeneratorExit:
            self.ended = "closed"
            raise

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[dict[str, dict[str, int]]]:
        self.calls.append((method, args[0]))
        await asyncio.sleep(0)
        return [{name: self.rows[name] for name in args[0] if name in self.rows}]


def rows_of(quantized: int, exact: int, recomputed: int = 0, preemptions: int = 0) -> dict[str, int]:
    return {"quantized": quantized, "exact": exact, "recomputed": recomputed, "preemptions": preemptions}


async def play(
    llm: FakeLlm, prompt: int = 10, *, rows: bool = True, preempted: Any = lambda: 0, params: Any = PLAIN
) -> list[TokenDelta]:
    deltas: list[TokenDelta] = []
    meter = StepMeter(prompt, time.monotonic() - 10)
    counter = RowCountClient(llm) if rows else None
    ids = {"prompt_token_ids": list(range(prompt))}
    await generate(llm, ids, params, "r1", meter, counter, preempted, deltas.append)
    return deltas


def script(now: float, cached: int = 4, **more: Any) -> list[Any]:
    last = stats(now - 9, now - 8, now - 7, **more)
    return [output([1], "a", cached=cached), output([2], "b", cached=cached),
            output([3], "", reason="stop", metrics=last, cached=cached)]  # fmt: skip


async def test_counts_come_from_one_call_at_the_first_token() -> None:
    llm = FakeLlm(script(time.monotonic()), {"r1": rows_of(5, 1)})
    deltas = await play(llm)
    assert llm.calls == [("mixquant_row_counts", ["r1"])]
    assert [delta.text for delta in deltas] == ["a", "b", ""]
    counts = deltas[-1].counts
    assert counts is not None
    assert (counts.prompt_tokens, counts.cached_tokens, counts.prefill_tokens) == (10, 4, 6)
    assert (counts.quantized_tokens, counts.exact_tokens, counts.decode_tokens) == (5, 1, 3)
    assert (counts.recomputed_rows, counts.preemptions) == (0, 0)
    assert deltas[-1].finish_reason == "stop"
    assert [delta.finish_reason for delta in deltas[:-1]] == [None, None]


async def test_counts_are_asked_again_after_a_preemption() -> None:
    seen = iter([0, 1])
    outputs = script(time.monotonic())
    del outputs[-1].metrics.num_preemptions  # vLLM 0.26 does not tell whose: any preemption counts
    llm = FakeLlm(outputs, {"r1": rows_of(5, 1, recomputed=7, preemptions=1)})
    deltas = await play(llm, preempted=lambda: next(seen))
    assert len(llm.calls) == 2
    assert deltas[-1].counts is not None
    assert deltas[-1].counts.recomputed_rows == 7
    own = FakeLlm(script(time.monotonic(), preemptions=1), {"r1": rows_of(5, 1, recomputed=7, preemptions=1)})
    own.script[0].metrics = stats(0, 0, 0)
    await play(own, preempted=lambda: 5)
    assert len(own.calls) == 2


async def test_a_contradiction_is_unknown_rather_than_wrong(caplog: pytest.LogCaptureFixture) -> None:
    deltas = await play(FakeLlm(script(time.monotonic()), {"r1": rows_of(9, 9)}))
    counts = deltas[-1].counts
    assert counts is not None
    assert (counts.quantized_tokens, counts.exact_tokens, counts.prefill_tokens) == (None, None, 6)
    assert "the worker counted 9 quantized" in caplog.text


async def test_a_worker_that_does_not_know_leaves_null() -> None:
    deltas = await play(FakeLlm(script(time.monotonic()), {}))
    counts = deltas[-1].counts
    assert counts is not None
    assert (counts.quantized_tokens, counts.exact_tokens, counts.recomputed_rows) == (None, None, None)


async def test_without_the_plugin_every_row_is_exact() -> None:
    llm = FakeLlm(script(time.monotonic()))
    counts = (await play(llm, rows=False))[-1].counts
    assert counts is not None
    assert (counts.quantized_tokens, counts.exact_tokens, counts.recomputed_rows) == (0, 6, 0)
    assert llm.calls == []
    preempted = FakeLlm(script(time.monotonic(), preemptions=2))
    counts = (await play(preempted, rows=False))[-1].counts
    assert counts is not None
    assert (counts.recomputed_rows, counts.preemptions) == (None, 2)


async def test_requests_of_one_step_share_a_call() -> None:
    llm = FakeLlm([], {"a": rows_of(1, 0), "b": rows_of(2, 0)})
    rows = RowCountClient(llm)
    found = await asyncio.gather(rows.ask("a"), rows.ask("b"), rows.ask("c"))
    assert llm.calls == [("mixquant_row_counts", ["a", "b", "c"])]
    assert found == [rows_of(1, 0), rows_of(2, 0), None]


async def test_a_failing_call_fails_no_turn(caplog: pytest.LogCaptureFixture) -> None:
    llm = FakeLlm(script(time.monotonic()))

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("worker is busy dying")

    llm.collective_rpc = broken  # type: ignore[method-assign]
    deltas = await play(llm)
    assert deltas[-1].counts is not None
    assert deltas[-1].counts.quantized_tokens is None
    assert "worker is busy dying" in caplog.text


async def test_a_whole_answer_is_given_though_the_engine_dies_before_its_rows_are_told() -> None:
    llm = FakeLlm(script(time.monotonic()))

    async def never(*_: Any, **__: Any) -> Any:
        llm.errored = True
        await asyncio.Event().wait()

    llm.collective_rpc = never  # type: ignore[method-assign]
    deltas = await asyncio.wait_for(play(llm), 5)
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].counts is not None
    assert deltas[-1].counts.quantized_tokens is None


async def test_first_and_last_delta_carry_the_prompt() -> None:
    deltas = await play(FakeLlm(script(time.monotonic())), rows=False)
    assert [delta.prompt_token_ids for delta in deltas] == [tuple(range(10)), None, tuple(range(10))]


@pytest.mark.parametrize("rows", [True, False])
async def test_the_first_delta_says_what_is_known_of_the_prompt(rows: bool) -> None:
    first, *between, _ = await play(FakeLlm(script(time.monotonic())), rows=rows)
    assert [delta.counts for delta in between] == [None]
    assert first.counts is not None
    assert (first.counts.prompt_tokens, first.counts.cached_tokens, first.counts.prefill_tokens) == (10, 4, 6)
    assert (first.counts.quantized_tokens, first.counts.exact_tokens) == ((None, None) if rows else (0, 6))


async def test_a_reader_that_fails_closes_the_stream() -> None:
    llm = FakeLlm(script(time.monotonic()))

    def post(_: TokenDelta) -> None:
        raise RuntimeError("Event loop is closed")

    with pytest.raises(RuntimeError):
        await generate(llm, {"prompt_token_ids": [1] * 4}, None, "r", StepMeter(4, 0.0), None, lambda: 0, post)
    assert llm.ended == "closed"


async def test_the_engines_own_error_is_raised() -> None:
    with pytest.raises(EngineError, match="internal error"):
        await play(FakeLlm([output([], reason="error")]))


@pytest.mark.parametrize("kv", [{"do_remote_prefill": True}, {"do_remote_decode": True, "remote_block_ids": [[1]]}])
async def test_kv_that_did_not_come_is_said(kv: dict[str, Any]) -> None:
    """vLLM fails such a request, on either side of a pair, and says "error" alone."""
    params = SimpleNamespace(extra_args={"kv_transfer_params": kv}, structured_outputs=None)
    with pytest.raises(KvLostError, match=r"did not come: .*decoder_kv_blocks_ttl") as caught:
        await play(FakeLlm([output([], reason="error")]), params=params)
    assert caught.value.retryable
    with pytest.raises(EngineError, match="internal error"):  # its KV had come
        await play(FakeLlm([output([5], "a"), output([], reason="error")]), params=params)


async def test_grammar_that_an_engine_gave_up_for_is_said() -> None:
    params = SimpleNamespace(extra_args={"kv_transfer_params": {"do_remote_decode": True}}, structured_outputs="json")
    with pytest.raises(EngineError, match="a token that it forbids"):
        await play(FakeLlm([output([], reason="error")]), params=params)


async def test_an_abort_of_the_engine_is_a_reason() -> None:
    deltas = await play(FakeLlm([output([], reason="abort", metrics=stats(0.0, 0.0, 0.0))]), rows=False)
    assert deltas[-1].finish_reason == "abort"
    assert deltas[-1].times is not None
    assert deltas[-1].times.prefill_seconds is None
    assert deltas[-1].times.timing_source == "client"


def test_times_use_one_clock() -> None:
    now = time.monotonic()
    meter = StepMeter(10, now - 2.0)
    meter.received(1, now - 1.0)
    meter.received(1, now - 0.5)
    meter.received(2, now - 0.1)
    times = meter.times(stats(now - 1.75, now - 1.25, now - 0.25))
    assert times.queue_seconds == pytest.approx(0.25)
    assert times.prefill_seconds == pytest.approx(0.5)
    assert times.delivery_seconds == pytest.approx(0.25)
    assert times.ttft_seconds == pytest.approx(1.0)
    assert times.decode_seconds == pytest.approx(1.0)
    assert times.itl_mean_seconds == pytest.approx(1.0 / 3)
    assert times.itl_p50_seconds == pytest.approx(0.2)
    assert times.total_seconds == pytest.approx(2.0, abs=0.1)
    assert times.timing_source == "engine"


@given(
    st.lists(st.floats(0, 10), min_size=4, max_size=4),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4)), min_size=1, max_size=20),
)
def test_relations_hold_for_any_stamps(gaps: list[float], steps: list[tuple[float, int]]) -> None:
    start = time.monotonic() - 200
    scheduled = start + gaps[0]
    first = scheduled + gaps[1]
    meter = StepMeter(3, start)
    now = first + gaps[2]
    for gap, tokens in steps:
        meter.received(tokens, now)
        now += gap
    times = meter.times(stats(scheduled, first, first + gaps[3]))  # construction checks the relations
    assert times.total_seconds is not None
    assert meter.decode_tokens == sum(tokens for _, tokens in steps)
    assert times.itl_p95_seconds is None or times.itl_p95_seconds >= (times.itl_p50_seconds or 0) >= 0
