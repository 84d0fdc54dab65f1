"""``PairEngine``: one engine reads the prompt, another one writes the answer, and a KV connector of vLLM's stands
between them. The paper's own deployment, with our quantized twin on the prefill side.

Both sides load the *same* model path: vLLM's connectors compare it in their handshake, and a twin of the weights is not
part of that comparison. The prefill side answers one token, which is thrown away; what it says of its KV goes with the
same request to the decode side.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest, JsonObject, Message, Sampling
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.openai import OpenAIEngine
from mixquant_agents.engine.pair.merge import merged_counts, merged_times
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    EngineError,
    EngineStartError,
    KvLostError,
    PairError,
    RemoteEngineError,
)
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = ["PairEngine"]

logger = logging.getLogger("mixquant_agents.engine")

LEASE_SECONDS = 30.0
"""How long a prefill engine keeps KV that nobody has fetched: vLLM's ``kv_lease_duration``."""
LONG_PROMPT = 64
"""Tokens from which a prompt has whole blocks, of any usual size, that a connector can hand on."""
KV_BACK_MARGIN = 5.0
"""Seconds before its end from which vLLM fetches no answer's KV back: the connector's
``_KV_BLOCKS_EXPIRY_SAFETY_MARGIN``."""
KEPT_THREADS = 4096
"""Conversations whose KV on the decode side is remembered."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the prefill side said at its end."""

    at: float
    counts: TurnCounts | None
    times: TurnTimes | None
    kv_transfer: JsonObject | None
    prompt_token_ids: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A conversation's KV on the decode side."""

    at: float
    kv_transfer: JsonObject
    token_ids: tuple[int, ...]


class PairEngine(Engine):
    """Two engines as one.

    Args:
        prefill: reads the prompts; normally started with a quantizing policy.
        decode: writes the answers; normally exact. The same model path, and a KV connector on both.
        lease_seconds: how long the prefill side keeps KV that nobody fetched (its ``kv_lease_duration``). A turn whose
            decode has not begun by then fails: its blocks may hold another turn by now.
        kv_back: fetch an answer's KV from the decode side when the conversation goes on, instead of reading the answer
            again in the prefill side's precision. Needs ``bidirectional_kv_xfer`` on both sides, and engines that tell
            token ids (:class:`VllmEngine`): it is fetched where the next prompt repeats its tokens, and nowhere else.
        kv_back_seconds: how long the decode side keeps it (its ``decoder_kv_blocks_ttl``); above 5, for vLLM fetches
            nothing in the last five seconds.

    Raises:
        ConfigError: the sides do not fit together.
    """

    def __init__(
        self,
        prefill: Engine,
        decode: Engine,
        *,
        lease_seconds: float = LEASE_SECONDS,
        kv_back: bool = False,
        kv_back_seconds: float = 480.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for side, engine in (("prefill", prefill), ("decode", decode)):
            if not isinstance(engine, Engine):
                raise ConfigError(f"PairEngine takes two engines, not {side}={engine!r}; see PairEngine.of_servers")
        if prefill is decode:
            raise ConfigError("prefill= and decode= are the same engine; give two, or use that one alone")
        if prefill.info.model != decode.info.model:
            raise ConfigError(
                f"prefill= runs {prefill.info.model!r} and decode= {decode.info.model!r}; KV of one model means "
                "nothing to another"
            )
        if not lease_seconds > 0:
            raise ConfigError(f"lease_seconds={lease_seconds!r}: give the prefill side's kv_lease_duration, above 0")
        if kv_back and not (prefill.info.token_ids and decode.info.token_ids):
            raise ConfigError(
                "kv_back=True needs engines that give token ids, such as VllmEngine: KV is fetched back only as far as "
                "the next prompt repeats the tokens it was made of"
            )
        if kv_back and not kv_back_seconds > KV_BACK_MARGIN:
            raise ConfigError(
                f"kv_back_seconds={kv_back_seconds!r}: vLLM's connector fetches no KV in the last {KV_BACK_MARGIN:g} "
                "seconds that it is kept; give more, and the decode side's decoder_kv_blocks_ttl alike"
            )
        self.prefill, self.decode = prefill, decode
        self._lease, self._kv_back, self._kv_back_seconds = lease_seconds, kv_back, kv_back_seconds
        self._clock = clock
        self._told_of_no_kv = False
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Without the KV on the decode side: it is freed by the first fetch, so two copies must not both offer it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._pid = os.getpid()

    @classmethod
    def of_servers(
        cls,
        model: str,
        *,
        prefill_url: str,
        decode_url: str,
        policy: PrecisionPolicy | str = "mixquant",
        lease_seconds: float = LEASE_SECONDS,
        **settings: Any,
    ) -> PairEngine:
        """Two servers, such as two ``vllm serve`` of which the first has ``--quantization mixquant``.

        Args:
            model: the name under which both serve it.
            prefill_url, decode_url: up to and including ``/v1``.
            policy: the prefill server's; only recorded.
            settings: of both :class:`OpenAIEngine`\\ s.
        """
        return cls(
            OpenAIEngine(model, base_url=prefill_url, policy=policy, **settings),
            OpenAIEngine(model, base_url=decode_url, policy="exact", **settings),
            lease_seconds=lease_seconds,
        )

    @property
    def info(self) -> EngineInfo:
        """The prefill side's policy and format, the decode side's abilities."""
        read, wrote = self.prefill.info, self.decode.info
        windows = [info.max_model_len for info in (read, wrote) if info.max_model_len is not None]
        prints = [info.fingerprint for info in (read, wrote)]
        devices = list(dict.fromkeys(info.device for info in (read, wrote) if info.device is not None))
        return replace(
            wrote,
            engine="pair",
            policy=read.policy,
            prefill_format=read.prefill_format,
            emulated=read.emulated,
            device=" + ".join(devices) or None,
            max_model_len=min(windows, default=None),
            fingerprint=None if None in prints else hashlib.sha256("+".join(map(str, prints)).encode()).hexdigest(),
        )

    async def start(self) -> None:
        """Start both sides, at once.

        Raises:
            PairError: names the side that did not start.
        """
        sides = {"prefill": self.prefill, "decode": self.decode}
        results = await asyncio.gather(*(engine.start() for engine in sides.values()), return_exceptions=True)
        for side, result in zip(sides, results, strict=True):
            if isinstance(result, EngineError):
                raise _side_error(side, result) from result
            if isinstance(result, BaseException):
                raise result

    @property
    def start_seconds(self) -> float | None:
        """How long the slower side took; ``None`` before that, and for servers."""
        seconds = [engine.start_seconds for engine in (self.prefill, self.decode)]
        return max((value for value in seconds if value is not None), default=None)

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt."""
        return await self.decode.count_tokens(messages, tools)

    async def aclose(self) -> None:
        """Close both sides, the second one too where the first one fails to."""
        results = await asyncio.gather(self.prefill.aclose(), self.decode.aclose(), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn: first on the prefill side, then on the decode side. Nothing is given out before the decode
        side's first token; a cancel between the two leaves the KV on the prefill side until its lease ends.

        Raises:
            RequestError: the request was wrong.
            KvLostError: the KV was gone, or did not arrive.
            PairError: a side failed; says which.
        """
        meter = TurnMeter()
        # Both sides must read the same tokens, and only the decode side knows those of earlier answers.
        request = replace(request, verbatim_history=False)
        if self._kv_back and request.prompt_token_ids is None:
            request = replace(request, prompt_token_ids=await self.prefill.render(request))
        read = await self._read(request, self._offered(request))
        if self._clock() - read.at > self._lease:
            raise self._expired()
        decode = replace(request, kv_transfer=_handed_on(read.kv_transfer))
        begun = False
        token_ids: list[int] = []
        try:
            async with aclosing(self.decode.stream(decode)) as answer:
                async for delta in answer:
                    if not begun and self._clock() - read.at > self._lease:
                        raise self._expired()
                    _check_prompts(read, delta, begun=begun)
                    begun = True
                    meter.token(len(delta.token_ids) or bool(delta.content or delta.reasoning or delta.tool_calls))
                    token_ids.extend(delta.token_ids)
                    if delta.finish_reason is not None:
                        self._tell_of_no_kv(read, delta.counts)
                        self._keep(request, read, token_ids, delta)
                        delta.times = merged_times(read.times, delta.times, meter.times())
                    if delta.counts is not None:
                        delta.counts = merged_counts(read.counts, delta.counts)
                    yield delta
        except EngineError as error:
            if isinstance(error, PairError):
                raise
            raise _side_error("decode", error, begun=begun) from error

    async def _read(self, request: EngineRequest, offered: Mapping[str, Any]) -> _Read:
        """Have the prompt read, by a request for one token. Where the ``offered`` KV of the answer before did not come,
        it is read without."""
        sampling = Sampling(max_tokens=1, temperature=0.0, extra=request.sampling.extra)
        prefill = replace(
            request,
            request_id=f"{request.request_id}-prefill",
            sampling=sampling,
            schema=None,
            tool_choice="none",  # the tools stay in the prompt
            kv_transfer={**offered, "do_remote_decode": True, "do_remote_prefill": False},
        )
        last: Delta | None = None
        try:
            async with aclosing(self.prefill.stream(prefill)) as answer:
                async for delta in answer:
                    last = delta
        except EngineError as error:
            failure = _side_error("prefill", error)
            if not offered or not failure.retryable:
                raise failure from error
            logger.warning("%s; the prompt is read without the KV of the answer before it", failure)
            return await self._read(replace(request, request_id=f"{request.request_id}-again"), {})
        if last is None or last.finish_reason is None:
            raise PairError("the prefill engine ended without a word of the prompt; look at its log", side="prefill")
        if last.finish_reason == "abort":
            raise PairError(
                "the prefill engine gave the prompt up (it may be shutting down); send the turn again",
                side="prefill", retryable=True,
            )  # fmt: skip
        way = last.times.delivery_seconds if last.times is not None else None
        # The lease began when the prompt was read; its news were on their way since, perhaps in a proxy's buffer.
        return _Read(self._clock() - (way or 0.0), last.counts, last.times, last.kv_transfer, last.prompt_token_ids)

    def _tell_of_no_kv(self, read: _Read, decode: TurnCounts | None) -> None:
        """Warn, once, of a pair whose sides never meet: each turn is right, and read twice."""
        if self._told_of_no_kv or decode is None or decode.prefill_tokens is None or decode.prompt_tokens is None:
            return
        if decode.prefill_tokens < decode.prompt_tokens or decode.prompt_tokens < LONG_PROMPT:
            return
        self._told_of_no_kv = True
        what = "nothing of KV to hand on" if read.kv_transfer is None else "KV, and the decode engine took none of it"
        logger.warning(
            "the decode engine read a prompt of %d tokens itself: the prefill engine had %s; start both sides with the "
            "same --kv-transfer-config, and look at their logs",
            decode.prompt_tokens, what,
        )  # fmt: skip

    def _expired(self) -> KvLostError:
        return KvLostError(
            f"the prompt's KV waited longer for the decode engine than the prefill engine keeps it ({self._lease:g} "
            "seconds), so nothing is answered from it; send the turn again, add decode engines, or raise "
            "kv_lease_duration together with lease_seconds",
            retryable=True,
        )

    # -- the answer's KV, back --

    def _keep(self, request: EngineRequest, read: _Read, token_ids: Sequence[int], last: Delta) -> None:
        """Remember where the KV of prompt and answer is, for the conversation's next turn."""
        prompt = last.prompt_token_ids or read.prompt_token_ids
        if (
            not self._kv_back
            or self._pid != os.getpid()
            or request.thread_id is None
            or last.kv_transfer is None
            or prompt is None
        ):
            return
        self._kept[request.thread_id] = _Kept(self._clock(), last.kv_transfer, (*prompt, *token_ids))
        self._kept.move_to_end(request.thread_id)
        while len(self._kept) > KEPT_THREADS:
            self._kept.popitem(last=False)

    def _offered(self, request: EngineRequest) -> Mapping[str, Any]:
        """What the prefill side may fetch from the decode side; empty for nothing. Used once: it is freed by that."""
        if self._pid != os.getpid():  # a forked copy: the KV is its parent's
            self._forget()
        kept = self._kept.pop(request.thread_id, None) if request.thread_id is not None else None
        if kept is None or self._clock() - kept.at >= self._kv_back_seconds - KV_BACK_MARGIN:
            return {}
        known = kept.kv_transfer.get("remote_num_tokens")
        beginning = kept.token_ids[:known]
        if not known or tuple((request.prompt_token_ids or ())[:known]) != beginning:
            return {}  # the template wrote the answer in other tokens, or the conversation was changed
        return kept.kv_transfer


def _handed_on(kv_transfer: JsonObject | None) -> JsonObject | None:
    """What the decode side gets of the KV. With the prefill side's cached tokens in it, vLLM would report those as
    its own, and the record has both sides' already."""
    if kv_transfer is None:
        return None
    return {name: value for name, value in kv_transfer.items() if name != "remote_prefill_cached_tokens"}


def _check_prompts(read: _Read, delta: Delta, *, begun: bool) -> None:
    """KV that was handed on is of the decode side's own prompt.

    Raises:
        PairError: the decode side read another prompt than the KV is of.
    """
    counts = delta.counts
    known, own = read.counts.prompt_tokens if read.counts else None, counts.prompt_tokens if counts else None
    tokens, others = read.prompt_token_ids, delta.prompt_token_ids
    lengths_differ = known is not None and own is not None and known != own
    tokens_differ = tokens is not None and others is not None and tuple(tokens) != tuple(others)
    if read.kv_transfer is None or not (lengths_differ or tokens_differ):
        return
    what = f"prompts of {known} and {own} tokens" if lengths_differ else "prompts of different tokens"
    given_out = ", and what was given out of the answer is of the wrong KV" if begun else ""
    raise PairError(
        f"prefill and decode engine made {what} of one request{given_out}; give both the same version of vLLM and "
        "the same chat template",
        side="transfer",
    )


def _side_error(side: str, error: EngineError, *, begun: bool = False) -> PairError:
    """The error of a turn whose side failed; says which, and what happened to the KV."""
    lasting = isinstance(error, EngineStartError | EngineClosedError)
    retryable = not begun and (error.retryable if isinstance(error, RemoteEngineError) else not lasting)
    words = str(error)
    if side == "decode" and not begun and _kv_words(words):
        return KvLostError(
            f"the prompt's KV did not reach the decode engine ({words}); look at both engines' logs, and send the turn "
            "again",
            retryable=True,
        )
    return PairError(f"the {side} engine of the pair failed: {words}", side=side, retryable=retryable)


def _kv_words(words: str) -> bool:
    """Whether an engine failed for KV that did not arrive: vLLM's ``kv_load_failure_policy="fail"``."""
    lowered = words.lower()
    return "kv" in lowered and any(word in lowered for word in ("load", "transfer", "expired", "blocks"))
