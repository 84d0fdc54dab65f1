"""``VllmEngine``: the :class:`~mixquant_agents.engine.base.Engine` on vLLM's ``AsyncLLM``."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import (
    Delta,
    EngineInfo,
    EngineRequest,
    JsonObject,
    Message,
    Sleep,
    SwitchableEngine,
)
from mixquant_agents.engine.parsing import TokenDelta, parsed
from mixquant_agents.engine.vllm.context_window import context_window
from mixquant_agents.engine.vllm.core import RunningEngine, assumed_info
from mixquant_agents.engine.vllm.history import TurnHistory
from mixquant_agents.engine.vllm.registry import EngineHandle, acquire
from mixquant_agents.engine.vllm.stats import EngineStats
from mixquant_agents.errors import ConfigError, EngineClosedError

__all__ = ["EngineStats", "VllmEngine"]


class VllmEngine(SwitchableEngine):
    """One vLLM engine in the caller's hands: owned child processes, no server. These talk to each other over sockets,
    and over ports of the loopback interface that torch and vLLM open for themselves.

    Starts at first use. Safe from several event loops and threads; turns run concurrently. ``VllmEngine(config)`` owns
    its engine; :meth:`shared` hands out the engine of all callers with equal settings.
    """

    def __init__(self, config: EngineConfig) -> None:
        if not isinstance(config, EngineConfig):
            raise ConfigError(f"VllmEngine takes an EngineConfig, not {config!r}; for example EngineConfig(model=…)")
        self._hold(config, EngineHandle(config), shared=False)

    @classmethod
    def shared(cls, config: EngineConfig) -> VllmEngine:
        """A handle on the engine shared by everybody with this ``config``; it ends when the last handle is closed."""
        handle = cls.__new__(cls)
        handle._hold(config, acquire(config), shared=True)
        return handle

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy by pickle, in this process or another, has an engine of its own, or the one shared there, which starts
        with its first turn. The copy of a closed handle is closed."""
        return _copy, (self.config, self._shared, self._closed)

    def __deepcopy__(self, memo: object) -> VllmEngine:
        """This handle: an engine of its own is more than a copy of settings asks for."""
        return self

    def _hold(self, config: EngineConfig, handle: EngineHandle, *, shared: bool) -> None:
        self.config, self._handle, self._shared, self._closed = config, handle, shared, False
        self._finalizer = weakref.finalize(self, handle.release)
        self._finalizer.atexit = False

    @property
    def start_seconds(self) -> float | None:
        """How long the start took; ``None`` before it."""
        running = self._handle.running
        return running.start_seconds if running is not None else None

    @property
    def policy(self) -> PrecisionPolicy:
        """The precision policy in force."""
        running = self._handle.running
        return running.policy if running is not None else self.config.policy

    async def start(self) -> None:
        """Start the engine now instead of with the first turn.

        Raises:
            ConfigError: a setting cannot be honoured.
            EngineStartError: the engine did not start.
        """
        await self._engine()

    @property
    def info(self) -> EngineInfo:
        """What this engine is: by its settings, and once it runs with ``auto`` resolved."""
        running = self._handle.running
        return running.info if running is not None else assumed_info(self.config, context_window(self.config))

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn; see :meth:`Engine.stream`. Closing the iterator aborts the turn in the engine.

        The answer is parsed here, in the caller's loop: the thread that owns the engine stays free.

        Raises:
            ContextOverflowError: prompt and answer do not fit; the engine never saw the request.
            RequestError: messages, sampling values, tools or schema were wrong.
            EngineDeadError: the engine died; the next call starts a new one.
        """
        engine = await self._engine()
        submitted = time.monotonic()  # the start of the engine is no part of a turn
        parser = engine.parser(request)
        here = asyncio.get_running_loop()
        inbox: asyncio.Queue[TokenDelta | BaseException] = asyncio.Queue()

        def post(item: TokenDelta | BaseException) -> None:
            here.call_soon_threadsafe(inbox.put_nowait, item)

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # this loop is gone, and with it whoever waited
                post(EngineClosedError(f"the engine for {self.config.model!r} was closed during this turn"))

        history = TurnHistory(engine.prompts.answers)
        turn = engine.submit(engine.turn(request, submitted, post, history))
        turn.add_done_callback(ended)  # a turn always ends with something in the inbox
        try:
            while True:
                item = await inbox.get()
                if isinstance(item, BaseException):
                    raise item
                delta = parsed(item, parser)
                history.feed(delta, item.stopped_by)
                if item.finish_reason is not None and history.calls_tools:
                    engine.hold(request, history)
                yield delta
                if item.finish_reason is not None:
                    return
        finally:
            turn.cancel()

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt."""
        engine = await self._engine()
        prompt = await asyncio.wrap_future(engine.submit(engine.prompts.render(messages, tools, {})))
        return len(prompt.token_ids)

    async def prefetch(self, request: EngineRequest, *, growing: bool = False) -> int:
        """See :meth:`Engine.prefetch`. Cancelling the task that waits for it ends the reading."""
        engine = await self._engine()
        return await asyncio.wrap_future(engine.submit(engine.prefetch(request, growing=growing)))

    async def release(self, thread_id: str) -> None:
        """See :meth:`Engine.release`. An engine that does not run holds nothing."""
        if (engine := self._handle.running) is not None:
            with suppress(EngineClosedError):  # closed at this moment
                await asyncio.wrap_future(engine.submit(engine.release(thread_id)))

    async def token_ids(self, text: str) -> list[int]:
        """Ids of the tokens of a text, without special tokens."""
        engine = await self._engine()
        return await asyncio.wrap_future(engine.submit(engine.prompts.token_ids(text)))

    async def render(self, request: EngineRequest) -> list[int]:
        """The token ids of the request's prompt."""
        engine = await self._engine()
        return list((await asyncio.wrap_future(engine.submit(engine.rendered(request)))).token_ids)

    async def sleep(self) -> Sleep:
        """Free the engine's memory, for everybody who shares it; see :meth:`Engine.sleep`.

        On a GPU with ``sleep_mode`` the weights go to the host's memory, and captured graphs stay valid. Without it,
        and on a CPU, the engine's processes end, which gives back all that they hold; waking starts them anew.
        """
        running = self._handle.running
        if running is None:
            return Sleep(way="ended", seconds=0.0, freed_bytes=0)
        if self.config.sleep_mode:
            return await asyncio.wrap_future(running.submit(running.sleep()))
        await asyncio.wrap_future(running.submit(running.check_idle("the engine cannot sleep")))
        begun, before = time.monotonic(), await asyncio.to_thread(running.held_bytes)
        await asyncio.to_thread(self._handle.suspend)
        seconds, after = time.monotonic() - begun, await asyncio.to_thread(running.held_bytes)
        freed = before - after if before is not None and after is not None else None
        return Sleep(way="ended", seconds=seconds, freed_bytes=freed, held_bytes=before)

    async def wake(self) -> None:
        """See :meth:`Engine.wake`."""
        engine = await self._engine()
        await asyncio.wrap_future(engine.submit(engine.wake()))

    async def stats(self) -> EngineStats:
        """State of the scheduler after its newest step, and the requests the front end waits for."""
        engine = await self._engine()
        return await asyncio.wrap_future(engine.submit(engine.stats()))

    async def limits(self) -> dict[str, int]:
        """What the engine can hold, as vLLM settled it: ``kv_tokens``, ``max_num_seqs``, ``max_num_batched_tokens``,
        ``block`` (tokens), ``lookahead`` (steps scheduled ahead)."""
        engine = await self._engine()
        return await asyncio.wrap_future(engine.submit(engine.limits()))

    async def set_policy(self, policy: PrecisionPolicy | str) -> dict[str, Any]:
        """Switch the precision of the idle engine, for everybody who shares it.

        Returns:
            The plugin's status, as ``mixquant_status`` gives it.

        Raises:
            ConfigError: turns are running, or the engine was started without the plugin (policy ``exact``).
            FormatRefusedError: this device cannot run the format.
        """
        engine = await self._engine()
        return await asyncio.wrap_future(engine.submit(engine.set_policy(PrecisionPolicy.of(policy))))

    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; for measurements. The engine must be idle."""
        engine = await self._engine()
        await asyncio.wrap_future(engine.submit(engine.reset_prefix_cache()))

    async def aclose(self) -> None:
        """Release the engine; the last holder ends its processes. Idempotent."""
        if self._let_go():
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._handle.close))

    def close(self) -> None:
        """:meth:`aclose` for callers without an event loop (blocking)."""
        if self._let_go():
            self._handle.close()

    def _let_go(self) -> bool:
        """Whether this handle still held its engine."""
        self._closed = True
        return self._finalizer.detach() is not None

    async def _engine(self) -> RunningEngine:
        if self._closed:
            raise EngineClosedError(f"this engine for {self.config.model!r} was closed; make a new one")
        return await self._handle.engine()


def _copy(config: EngineConfig, shared: bool, closed: bool) -> VllmEngine:
    """What a pickled handle becomes."""
    engine = VllmEngine.shared(config) if shared else VllmEngine(config)
    if closed:
        engine.close()
    return engine
