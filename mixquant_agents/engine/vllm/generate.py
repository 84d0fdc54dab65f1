"""One turn on the owner's loop: vLLM's ``RequestOutput`` deltas → :class:`TokenDelta`, with counts and times.

Two clocks must not mix: ``RequestOutput.metrics.arrival_time`` is wall clock and unused here; ``scheduled_ts``,
``first_token_ts`` and ``last_token_ts`` are ``time.monotonic()``, the same clock for all processes of a host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixquant_agents.engine.base import FinishReason, TokenLogprob
from mixquant_agents.engine.meter import EngineStamps, TurnMeter
from mixquant_agents.engine.parsing import TokenDelta
from mixquant_agents.engine.vllm.kept import Reuse
from mixquant_agents.engine.vllm.row_counts import Counts, RowCountClient, draft_counts
from mixquant_agents.errors import EngineError, KvLostError
from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["StepMeter", "generate", "logprobs_of"]

logger = logging.getLogger("mixquant_agents.engine")

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}


@dataclass(slots=True)
class StepMeter:
    """What the steps of the engine show of one turn while it runs. Instants in seconds, ``time.monotonic()``.

    Attributes:
        prompt_tokens: tokens of the prompt.
        submitted: when the turn was handed over.
        verbatim_tokens: how many of the prompt's tokens are an earlier turn's; ``None`` where nobody looked.
        prompt_change: see :class:`~mixquant_agents.engine.base.Delta`.
        reuse: what was held or read ahead of this prompt; ``None`` where nobody looked.
        static_tokens: so many at the prompt's beginning are read exact, and lent from the prefix cache.
        count_reasoning: counts reasoning tokens from the ids of prompt and answer; ``None`` where nobody can.
        answer: token ids so far, kept only for that.
    """

    prompt_tokens: int
    submitted: float
    cached_tokens: int | None = None
    verbatim_tokens: int | None = None
    prompt_change: str | None = None
    reuse: Reuse | None = None
    static_tokens: int = 0
    count_reasoning: Callable[[Sequence[int], Sequence[int]], int] | None = None
    answer: list[int] = field(default_factory=list)
    _meter: TurnMeter = field(init=False)

    def __post_init__(self) -> None:
        self._meter = TurnMeter(submitted=self.submitted)

    @property
    def decode_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._meter.tokens

    def received(self, tokens: int, now: float) -> None:
        """An engine step's output arrived in the owner's thread, with ``tokens`` tokens."""
        self._meter.token(tokens, now)

    def times(self, stats: Any) -> TurnTimes:
        """Times from vLLM's stamps (0 where it did not stamp) and own receipts."""
        names = ("scheduled_ts", "first_token_ts", "last_token_ts")
        return self._meter.times(EngineStamps(*(getattr(stats, name, 0.0) or None for name in names)))

    def counts(
        self,
        rows: Counts | None,
        preemptions: int | None,
        *,
        plugin: bool,
        reasoning: int | None = None,
        drafts: Counts | None = None,
    ) -> TurnCounts:
        """Counts of the turn; ``rows`` is the worker's answer, ``plugin`` whether the engine runs the plugin at all,
        ``drafts`` what the engine's core says of them."""
        cached, quantized, exact, recomputed = self.cached_tokens, None, None, None
        if rows is not None:
            quantized, exact, recomputed = rows["quantized"], rows["exact"], rows["recomputed"]
            preemptions = rows["preemptions"]
            if cached is not None and cached + quantized + exact != self.prompt_tokens:
                logger.error(
                    "of %d prompt tokens %d were cached, but the worker counted %d quantized and %d exact rows",
                    self.prompt_tokens,
                    cached,
                    quantized,
                    exact,
                )
                quantized = exact = None  # unknown rather than wrong
        prefill = self.prompt_tokens - cached if cached is not None else None
        if not plugin:  # vLLM's own layers: nothing is quantized
            quantized, exact = (0, prefill) if prefill is not None else (None, None)
            recomputed = 0 if preemptions == 0 else None
        warmed, kept, evicted = self._reused(cached)
        return TurnCounts(
            warmed_tokens=warmed,
            kept_tokens=kept,
            evicted_tokens=evicted,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=cached,
            verbatim_tokens=self.verbatim_tokens,
            lent_tokens=None if cached is None else min(cached, self.static_tokens),
            prefill_tokens=prefill,
            quantized_tokens=quantized,
            exact_tokens=exact,
            decode_tokens=self.decode_tokens,
            reasoning_tokens=reasoning,
            draft_cycles=drafts["cycles"] if drafts else None,
            drafted_tokens=drafts["drafted"] if drafts else None,
            accepted_tokens=drafts["accepted"] if drafts else None,
            recomputed_rows=recomputed,
            preemptions=preemptions,
        )

    def _reused(self, cached: int | None) -> tuple[int | None, int | None, int | None]:
        """Tokens of the prompt that were read ahead, that were held, and that were held in vain."""
        if self.reuse is None or cached is None:
            return None, None, None
        begin, end = self.reuse.read_ahead or (0, 0)
        held = self.reuse.held
        return max(0, min(end, cached) - begin), min(held, cached), max(0, held - cached)


async def generate(
    llm: Any,
    prompt: Any,
    params: Any,
    request_id: str,
    meter: StepMeter,
    rows: RowCountClient | None,
    preempted: Callable[[], int],
    post: Callable[[TokenDelta], None],
    *,
    drafting: bool = False,
    **options: Any,
) -> None:
    """Generate and ``post`` each delta. Cancelling this task aborts the request in the engine.

    Args:
        rows: asks the worker for row counts; ``None`` without the plugin.
        preempted: preemptions in the engine so far, of any request.
        drafting: the engine drafts, and counts that.
        options: further arguments of ``AsyncLLM.generate``.
    """
    future: asyncio.Future[Counts | None] | None = None
    seen, posted, ids = 0, False, tuple(prompt["prompt_token_ids"])
    try:
        async with aclosing(llm.generate(prompt, params, request_id, **options)) as outputs:  # aborts however this ends
            async for output in outputs:
                completion = output.outputs[0]
                tokens = tuple(completion.token_ids)
                meter.received(len(tokens), time.monotonic())
                if meter.count_reasoning is not None:
                    meter.answer += tokens
                meter.cached_tokens = output.num_cached_tokens
                if future is None and rows is not None and tokens:
                    future, seen = rows.ask(request_id), _preemptions(output.metrics, preempted)
                if completion.finish_reason == "error":
                    raise _given_up(params, begun=posted or bool(tokens))
                delta = TokenDelta(text=completion.text, token_ids=tokens, logprobs=logprobs_of(completion))
                if not posted:  # parsers ask whether reasoning has begun; the counts are for turns that end early
                    known = meter.counts(None, None, plugin=rows is not None)
                    delta = replace(delta, prompt_token_ids=ids, counts=known)
                if output.finished:
                    row_counts = await rows.answer(future) if rows is not None and future is not None else None
                    if rows is not None and _preemptions(output.metrics, preempted) != seen:
                        # rows may have run again after the first answer
                        row_counts = await rows.answer(rows.ask(request_id))
                    drafts = await draft_counts(llm, request_id) if drafting else None
                    own = getattr(output.metrics, "num_preemptions", None)
                    thought = meter.count_reasoning(ids, meter.answer) if meter.count_reasoning is not None else None
                    delta = replace(
                        delta,
                        finish_reason=_REASONS.get(str(completion.finish_reason), "stop"),
                        counts=meter.counts(row_counts, own, plugin=rows is not None, reasoning=thought, drafts=drafts),
                        times=meter.times(output.metrics),
                        prompt_token_ids=ids,
                        prompt_change=meter.prompt_change,
                        stopped_by=_stopped_by(completion),
                        kv_transfer=getattr(output, "kv_transfer_params", None),
                    )
                post(delta)
                posted = True
    except BaseException:  # vLLM forgets a request that failed or was cancelled on its way to the engine core
        if not llm.errored:
            with suppress(Exception):
                await llm.abort(request_id)
        raise


def _given_up(params: Any, *, begun: bool) -> EngineError:
    """What the engine gives a request up for, which it does not say: KV that another engine had and that did not come,
    or a grammar that cannot be made or was left."""
    transfer = (params.extra_args or {}).get("kv_transfer_params") or {}
    if not begun and (transfer.get("do_remote_prefill") or transfer.get("remote_block_ids")):
        return KvLostError(
            "the KV that another engine had of this prompt did not come: that engine keeps it no longer "
            "(kv_lease_duration; decoder_kv_blocks_ttl, of which the last 5 seconds do not count), or the connection "
            "between the two failed",
            retryable=True,
        )
    if params.structured_outputs is not None:
        return EngineError(
            "the engine gave up on this request, whose answer follows a grammar: vLLM could not make that, or wrote "
            "a token that it forbids; its log says which"
        )
    return EngineError("the engine gave up on this request after an internal error; its log says more")


def _stopped_by(completion: Any) -> Literal["token", "word"] | None:
    if completion.finish_reason != "stop":
        return None
    return "word" if isinstance(completion.stop_reason, str) else "token"


def _preemptions(metrics: Any, of_engine: Callable[[], int]) -> int:
    """Preemptions of this request; where vLLM does not tell (0.26), of any request."""
    own = getattr(metrics, "num_preemptions", None)
    return of_engine() if own is None else int(own)


def logprobs_of(completion: Any) -> tuple[TokenLogprob, ...]:
    """vLLM's ``list[dict[token id, Logprob]]`` of this delta, chosen token first."""
    if not completion.logprobs:
        return ()
    result = []
    for token, choices in zip(completion.token_ids, completion.logprobs, strict=True):
        chosen = choices[token]
        others = sorted(choices.values(), key=lambda choice: choice.rank or 0)
        result.append(
            TokenLogprob(
                token=chosen.decoded_token or "",
                logprob=float(chosen.logprob),
                top=tuple((other.decoded_token or "", float(other.logprob)) for other in others),
            )
        )
    return tuple(result)
