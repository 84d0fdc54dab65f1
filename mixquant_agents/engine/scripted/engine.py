"""An engine that answers by script: no model, no weights, milliseconds. Test your graphs with it.

::

    engine = ScriptedEngine(["Hello!", ScriptedTurn(tool_calls=[{"name": "add", "args": {"a": 3, "b": 4}}])])
    model = MixQuantChatModel(engine=engine)

Answers take the way a real model's take: tool calls and reasoning are written as Hermes text and parsed back, prompts
are rendered and counted, beginnings of earlier prompts come from a modelled prefix cache, and every turn is timed.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.engine.base import (
    Delta,
    EngineInfo,
    EngineRequest,
    JsonObject,
    Message,
    SwitchableEngine,
)
from mixquant_agents.engine.hermes import HermesParser
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.engine.parsing import TokenDelta, parsed
from mixquant_agents.engine.scripted.prompt import BLOCK_TOKENS, PrefixCache, prompt_tokens, token_id, tokenize
from mixquant_agents.engine.scripted.turn import Played, ScriptedTurn, play
from mixquant_agents.errors import (
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    EngineDeadError,
    RequestError,
)
from mixquant_agents.precision.plan import RequestRows, plan_rows
from mixquant_agents.precision.resolve import ResolvedPolicy, resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.records import TurnCounts

__all__ = ["ScriptedEngine"]

Answer = str | ScriptedTurn | BaseException
Script = Sequence[Answer] | Callable[[EngineRequest], Answer | Awaitable[Answer]]

_DEVICE = DeviceInfo("cpu", "script")
"""What policies are resolved for: where nothing is native, every named format is emulated."""

_BREATHE_EVERY = 128
"""Tokens after which the event loop gets a turn where the script has no delays."""


class ScriptedEngine(SwitchableEngine):
    """An :class:`~mixquant_agents.engine.base.Engine` whose answers are given beforehand.

    Args:
        script: the answers in the order of the requests, or a function (sync or async) from the request to its answer.
            An answer is a text, a :class:`ScriptedTurn`, or an exception to raise before the first token.
        cycle: begin again when a list of answers is used up, instead of raising ``RequestError``.
        model: name in records.
        policy: precision policy (or its preset's name) that the counts pretend; nothing is computed.
        max_model_len: context window in tokens; a longer prompt raises ``ContextOverflowError``.
        keep_requests: how many of the latest requests ``requests`` remembers.

    Raises:
        ConfigError: the script is neither answers nor a function, or a setting is wrong.

    Attributes:
        requests: the latest requests, oldest first.
        prefetched: the latest beginnings read ahead, and whether their last message was still growing.
        released: the latest threads whose prefixes were let go.
        finished: requests that ran to their end or failed by script.
        aborted: requests that were cancelled or abandoned.
    """

    def __init__(
        self,
        script: Script = ("",),
        *,
        cycle: bool = False,
        model: str = "scripted",
        policy: PrecisionPolicy | str = "exact",
        max_model_len: int = 131_072,
        keep_requests: int = 1024,
    ) -> None:
        if not (callable(script) or isinstance(script, Iterable)):
            raise ConfigError(f"script={script!r} is no script; give a list of answers, or a function of the request")
        if not isinstance(model, str) or max_model_len < 1 or keep_requests < 0:
            given = f"model={model!r}, max_model_len={max_model_len}, keep_requests={keep_requests}"
            raise ConfigError(f"{given}: give a name, at least 1 token, and at least 0 requests")
        self._script = script if callable(script) else [script] if isinstance(script, str) else list(script)
        self._cycle = cycle
        self._model = model
        self._policy = PrecisionPolicy.of(policy)
        self._max_model_len = max_model_len
        self._cache = PrefixCache()
        self._request_count = 0
        self._closed = False
        self._waiting: set[Callable[[], object]] = set()
        self._lock = threading.Lock()  # turns may run in the loops of several threads
        self.running = 0
        """Requests running now: 0 when nothing has leaked."""
        self.requests: deque[EngineRequest] = deque(maxlen=keep_requests)
        self.prefetched: deque[tuple[EngineRequest, bool]] = deque(maxlen=keep_requests)
        self.released: deque[str] = deque(maxlen=keep_requests)
        self.finished = 0
        self.aborted = 0

    def __getstate__(self) -> dict[str, object]:
        """Without what belongs to this process: a copy plays the same script with nothing running."""
        return {**self.__dict__, "_lock": None, "_waiting": set(), "running": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def model(self) -> str:
        """The name in records."""
        return self._model

    @property
    def max_model_len(self) -> int:
        """The context window in tokens."""
        return self._max_model_len

    @property
    def info(self) -> EngineInfo:
        """What the script pretends to be."""
        resolved = self._resolved()
        return EngineInfo(
            engine="scripted",
            model=self._model,
            policy=self._policy.name,
            prefill_format=resolved.prefill_format.value,
            decode_format=resolved.decode_format.value,
            emulated=resolved.emulated,
            storage=resolved.storage,
            max_model_len=self._max_model_len,
            fingerprint=self._policy.fingerprint,
            reasoning=True,
            token_ids=True,
        )

    @property
    def policy(self) -> PrecisionPolicy:
        """The precision policy that the counts pretend."""
        return self._policy

    async def set_policy(self, policy: PrecisionPolicy | str) -> dict[str, Any]:
        """Pretend another policy from the next turn on; see :meth:`SwitchableEngine.set_policy`."""
        with self._lock:
            if self.running:
                raise ConfigError(
                    f"the policy cannot change while {self.running} turns are running; wait for their end"
                )
            self._policy = PrecisionPolicy.of(policy)
        return {"policy": self._policy.name}

    async def reset_prefix_cache(self) -> None:
        """Forget the prompts seen so far."""
        with self._lock:
            self._cache = PrefixCache()

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt."""
        return len(prompt_tokens(messages, tools))

    async def prefetch(self, request: EngineRequest, *, growing: bool = False) -> int:
        """See :meth:`Engine.prefetch`; the modelled prefix cache learns what is certain."""
        ids = prompt_tokens(request.messages, request.tools)
        generation = len(tokenize("<|im_start|>assistant\n"))
        whole = request.messages and request.messages[-1].get("role") in ("user", "tool") and not growing
        ids = ids if whole else ids[: len(ids) - generation - (2 if growing else 0)]  # the end marker comes later
        with self._lock:
            self._cache.add(ids, request.cache_salt)
        self.prefetched.append((request, growing))
        return len(ids) // BLOCK_TOKENS * BLOCK_TOKENS

    async def release(self, thread_id: str) -> None:
        """See :meth:`Engine.release`."""
        self.released.append(thread_id)

    async def token_ids(self, text: str) -> list[int]:
        """Ids of the pieces that this engine counts as tokens."""
        return list(map(token_id, tokenize(text)))

    async def aclose(self) -> None:
        """Refuse further requests and end the running ones with ``EngineClosedError``. Idempotent."""
        self._closed = True
        for wake in tuple(self._waiting):
            wake()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Play the next answer.

        Raises:
            RequestError: the script has no answer left.
            ContextOverflowError: the prompt does not fit ``max_model_len``.
            EngineClosedError: the engine was closed.
        """
        self._check_open()
        meter = TurnMeter()
        self.requests.append(request)
        with self._lock:
            self.running += 1
        aborted = True
        try:
            turn = await self._answer(request)
            ids = self._admit(request)
            with self._lock:
                cached = self._cache.matched(ids, request.cache_salt)
            played = play(turn, request)
            if played.deltas:
                known = TurnCounts(prompt_tokens=len(ids), cached_tokens=cached, prefill_tokens=len(ids) - cached)
                played.deltas[0] = replace(played.deltas[0], counts=known)
            parser = HermesParser(tools=bool(request.tools) and request.tool_choice != "none")
            scheduled = await self._prefill(turn, meter)
            if turn.token_seconds or turn.fail_after is not None or turn.hang_after is not None:
                async for delta in self._eventful(turn, played):
                    meter.token()
                    yield _parsed(delta, parser)
            else:
                for number, delta in enumerate(played.deltas, 1):
                    meter.token()
                    yield _parsed(delta, parser)
                    if not number % _BREATHE_EVERY:
                        await asyncio.sleep(0)
                        self._check_open()
            with self._lock:
                self._cache.add([*ids, *map(token_id, tokenize(played.visible))], request.cache_salt)
            aborted = False
            last = TokenDelta(
                finish_reason=played.finish_reason,
                counts=self._counts(len(ids), cached, self._static_tokens(request, ids), played),
                times=meter.times(meter.as_engine(scheduled=scheduled)),
                prompt_token_ids=ids,
            )
            yield parsed(last, parser)
        except Exception:
            aborted = False
            raise
        finally:
            with self._lock:
                self.running -= 1
                self.aborted += aborted
                self.finished += not aborted

    async def _answer(self, request: EngineRequest) -> ScriptedTurn:
        if callable(self._script):
            given = self._script(request)
            answer = await given if inspect.isawaitable(given) else given
        else:
            with self._lock:
                index, self._request_count = self._request_count, self._request_count + 1
            if index >= len(self._script) and not (self._cycle and self._script):
                raise RequestError(
                    f"the script has {len(self._script)} answers and this is request {index + 1}; "
                    "add an answer, or make the engine with cycle=True"
                )
            answer = self._script[index % len(self._script)]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            return ScriptedTurn(text=answer)
        if not isinstance(answer, ScriptedTurn):
            raise RequestError(f"the script's answer is {answer!r}; give a text, a ScriptedTurn, or an exception")
        return answer

    def _admit(self, request: EngineRequest) -> Sequence[int]:
        ids = request.prompt_token_ids
        if ids is None:
            ids = prompt_tokens(request.messages, request.tools)
        max_tokens = request.sampling.max_tokens
        if len(ids) + (max_tokens or 1) > self._max_model_len:
            raise ContextOverflowError(len(ids), self._max_model_len, max_tokens)
        return ids

    async def _prefill(self, turn: ScriptedTurn, meter: TurnMeter) -> float:
        """Wait as the script says; returns the instant at which the prompt was begun."""
        if turn.queue_seconds:
            await asyncio.sleep(turn.queue_seconds)
        scheduled = meter.now()
        await asyncio.sleep(turn.prefill_seconds)
        self._check_open()
        return scheduled

    async def _eventful(self, turn: ScriptedTurn, played: Played) -> AsyncGenerator[Delta | TokenDelta, None]:
        """The deltas with the turn's delays, failure and hang."""
        for index, delta in enumerate(played.deltas):
            await self._incident(turn, index)
            if index:
                await asyncio.sleep(turn.token_seconds)
                self._check_open()
            yield delta
        await self._incident(turn, len(played.deltas))

    async def _incident(self, turn: ScriptedTurn, index: int) -> None:
        """Fail or hang where the script says so; an incident after the last token comes at the end."""
        if turn.fail_after == index:
            raise turn.error or EngineDeadError("the scripted engine died mid-turn, as its script says")
        if turn.hang_after == index:
            woken, loop = asyncio.Event(), asyncio.get_running_loop()

            def wake() -> None:
                loop.call_soon_threadsafe(woken.set)

            self._waiting.add(wake)
            try:
                await woken.wait()
            finally:
                self._waiting.discard(wake)
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the scripted engine was closed; make a new one")

    def _resolved(self) -> ResolvedPolicy:
        return resolve(self.policy, _DEVICE)

    def _static_tokens(self, request: EngineRequest, ids: Sequence[int]) -> int:
        """Tokens of the prompt's static beginning, whole blocks; 0 under policies that do not keep it exact."""
        if not self.policy.exact_static_prefix:
            return 0
        static = min(request.static_tokens, len(ids))
        if request.prompt_token_ids is None:
            leading = list(itertools.takewhile(lambda message: message.get("role") == "system", request.messages))
            pairs = zip(ids, prompt_tokens(leading, request.tools), strict=False)
            static = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return static // BLOCK_TOKENS * BLOCK_TOKENS

    def _counts(self, prompt: int, cached: int, static: int, played: Played) -> TurnCounts:
        """Rows by the engine's own routing rule, the prompt read in one step."""
        prefill = prompt - cached
        plan = plan_rows([RequestRows("scripted", prompt, cached, prefill, static)], self._resolved().rule())
        return TurnCounts(
            prompt_tokens=prompt,
            cached_tokens=cached,
            lent_tokens=min(cached, static),
            prefill_tokens=prefill,
            quantized_tokens=plan.num_quantized,
            exact_tokens=plan.num_exact,
            decode_tokens=len(played.deltas),
            reasoning_tokens=played.reasoning_tokens,
            recomputed_rows=0,
            preemptions=0,
        )


def _parsed(delta: Delta | TokenDelta, parser: HermesParser) -> Delta:
    return delta if isinstance(delta, Delta) else parsed(delta, parser)
