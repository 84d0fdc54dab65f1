"""The running engine: one thread that owns an event loop and the ``AsyncLLM`` living on it.

``AsyncLLM`` belongs to one loop, agents have many. So callers cross over: coroutines come in by
``run_coroutine_threadsafe``, results go back by ``call_soon_threadsafe``. Nothing polls, but for a look at the engine's
processes, once a second while turns wait for them.

Coroutine methods here run on the owner's loop; callers :meth:`~RunningEngine.submit` them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import EngineInfo, EngineRequest, Sampling, Sleep
from mixquant_agents.engine.parsing import OutputParser, TokenDelta
from mixquant_agents.engine.vllm.args import engine_arguments, start_environment
from mixquant_agents.engine.vllm.beginnings import SharedBeginnings
from mixquant_agents.engine.vllm.checkpoint import check_folder, check_hub, model_path
from mixquant_agents.engine.vllm.errors import start_error, turn_error
from mixquant_agents.engine.vllm.first_text import decode_ends_alone
from mixquant_agents.engine.vllm.generate import StepMeter, generate
from mixquant_agents.engine.vllm.grammar import Grammar, checked_tools, grammar_of, tools_active
from mixquant_agents.engine.vllm.grammar.checked_calls import CheckedCalls
from mixquant_agents.engine.vllm.grammar.checker import GrammarChecker
from mixquant_agents.engine.vllm.history import TurnHistory
from mixquant_agents.engine.vllm.history.turn import RenderedPrompt
from mixquant_agents.engine.vllm.kept import KeptPrefix, KeptPrefixes, Pieces
from mixquant_agents.engine.vllm.leftovers import (
    descendants,
    end_processes,
    segments_of,
    socket_folder,
    sockets_in,
    unlink,
)
from mixquant_agents.engine.vllm.liveness import watch
from mixquant_agents.engine.vllm.memory import device_bytes, resident_bytes
from mixquant_agents.engine.vllm.parsers import make_parser, parser_names, reasoning_counter, tag_model_of
from mixquant_agents.engine.vllm.progress import start_progress
from mixquant_agents.engine.vllm.prompts import Prompts
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.engine.vllm.row_counts import RowCountClient
from mixquant_agents.engine.vllm.sampling import sampling_parameters
from mixquant_agents.engine.vllm.startup import StartControl
from mixquant_agents.engine.vllm.stats import EngineStats, StatsRecorder
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    FormatRefusedError,
    MissingDependencyError,
    MixQuantError,
    RequestError,
)
from mixquant_agents.precision.static_prefix import BlockKeys, StaticPrefix, exact_salt, salted
from mixquant_agents.unicode import has_lone_surrogate

__all__ = ["RunningEngine", "assumed_info"]

logger = logging.getLogger("mixquant_agents.engine")
T = TypeVar("T")
Post = Callable[[TokenDelta | BaseException], None]

_starting = threading.Lock()
"""A start changes the environment that its processes inherit, so starts happen one after the other."""

SHUTDOWN_SECONDS = 2.0
"""vLLM's processes hold nothing to save. After so long they are killed; CPU workers never end by themselves."""


class RunningEngine:
    """One engine, from start to end: turns, statistics, policy. A dead one is replaced, never revived.

    Attributes:
        llm: vLLM's ``AsyncLLM``; touched only on the owner's loop.
        loop: the owner's event loop.
        policy: the precision policy in force.
        renderer: messages → token ids.
        start_seconds: how long the start took.
        status: the plugin's answer to ``mixquant_status``, or ``{}`` without the plugin.
        pieces: in which a growing prompt is read while turns run.
        processes: ids of vLLM's engine core, and of what else the start made in this process.
        log_path: what vLLM's processes write; kept where the engine died.
    """

    def __init__(self, config: EngineConfig, control: StartControl | None = None) -> None:
        """Start the engine and wait for it (blocking, seconds to minutes).

        Raises:
            ConfigError: a setting cannot be honoured.
            EngineStartError: the engine did not start.
            EngineClosedError: the start was cancelled through ``control``.
        """
        if _in_bootstrap():
            from mixquant_agents.engine.vllm.child_process import report_missing_guard

            report_missing_guard()
        self.config = config
        self.policy = config.policy
        self.pid = os.getpid()
        self.recorder = StatsRecorder()
        self.dead = False
        self.asleep = False
        self._changing = asyncio.Lock()  # held while the engine falls asleep, wakes, or changes its policy
        self._working = 0
        self.pieces = Pieces()
        self.start_seconds = 0.0
        self.status: dict[str, Any] = {}
        self.llm: Any = None
        self.prompts: Prompts
        self.tool_parser: str | None = None
        self.reasoning_parser: str | None = None
        self.processes: list[int] = []
        self._tree: list[Any] = []
        self._left_behind: frozenset[str] = frozenset()
        log, self.log_path = tempfile.mkstemp(prefix=f"mixquant-engine-{self.pid}-", suffix=".log")
        os.close(log)
        self._grammars = GrammarChecker(self._vocabulary)
        self._turns: dict[asyncio.Task[Any], Post] = {}
        self._watch: asyncio.Task[None] | None = None
        self.loop = asyncio.new_event_loop()
        self.stopping = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mixquant-engine", daemon=True)
        self._thread.start()
        try:
            self.submit(self._start(control or StartControl(config.model))).result()
        except BaseException:
            self.close()
            raise
        llm: Any = self.llm
        self._rows: RowCountClient | None = RowCountClient(llm) if config.policy.quantizes else None
        cache = llm.vllm_config.cache_config
        self._block = int(cache.block_size)
        self._beginnings = SharedBeginnings()
        self._kept = KeptPrefixes((cache.num_gpu_blocks or 0) * self._block or None)
        self._background: set[asyncio.Task[Any]] = set()
        self._tag_model = tag_model_of(self.tool_parser)
        self._count_reasoning = reasoning_counter(self.reasoning_parser, self.renderer.tokenizer)
        self._defaults: dict[str, Any] = dict(llm.model_config.get_diff_sampling_param())

    @property
    def renderer(self) -> Renderer:
        """Messages → token ids; of ordinary prompts."""
        return self.prompts.renderer

    # -- the thread --

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run ``work`` on the owner's loop; usable from any thread. Cancelling the future cancels the work.

        Raises:
            EngineClosedError: the engine is being closed.
        """
        with self._gate:
            if self.stopping:
                work.close()
                raise EngineClosedError(f"the engine for {self.config.model!r} was closed; make a new one")
            return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End the engine's processes and the thread (blocking). Idempotent; not to be called on the owner's loop."""
        with self._gate:
            if self.stopping or self.pid != os.getpid():
                return
            self.stopping = True
        with suppress(concurrent.futures.CancelledError):
            asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        unlink(self._left_behind)
        if not self.dead:
            unlink([self.log_path])

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    # -- start and end --

    async def _start(self, control: StartControl) -> None:
        config = self.config
        by_user = any(name in os.environ for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH"))
        try:
            check_folder(config)  # a wrong path is refused before a start is announced
            with _starting, start_progress(config.model, self.log_path) as progress:
                control.check()
                progress.enter("preparing the model" if config.model == "embedded" else "looking at the model")
                path, local = model_path(config)
                if not local:
                    check_hub(config)
                connector = "kv_transfer_config" in config.vllm_args
                with start_environment(self.log_path, local, connector, sleep_mode=config.sleep_mode):
                    control.check()
                    progress.enter("importing vLLM")
                    _quiet(by_user)
                    arguments, executor = self._vllm_arguments(path)
                    _quiet(by_user)
                    progress.enter("starting the engine's processes (weights, KV cache)")
                    from vllm.v1.engine.async_llm import AsyncLLM

                    folder = socket_folder()
                    sockets = sockets_in(folder)
                    with control.launching():
                        self.llm = AsyncLLM(
                            vllm_config=arguments,
                            executor_class=executor,
                            log_stats=bool(config.vllm_args.get("disable_log_stats", True)) is False,
                            log_requests=False,
                            stat_loggers=[self.recorder.factory()],
                        )
                    decode_ends_alone(self.llm.output_processor)
                    self.llm.mixquant_owner = "engine"  # the plugin's hook of servers then leaves its requests alone
                    self.processes = control.processes
                    self._tree = descendants(self.processes)
                    self._left_behind = (sockets_in(folder) - sockets) | segments_of(self._tree)
                _quiet(by_user)  # starting configured the log anew
                if config.policy.quantizes:
                    self.status = dict((await self.llm.collective_rpc("mixquant_status"))[0])
                if config.sleep_mode:
                    await self.llm.collective_rpc("mixquant_reserve_host_memory")
                self.start_seconds = progress.seconds
        except MixQuantError:
            raise
        except Exception as error:
            control.check()
            self.dead = True  # keeps the log
            raise start_error(error, config, self.log_path) from error

    def _vllm_arguments(self, path: str) -> tuple[Any, type]:
        """vLLM's configuration and the guarded executor class; also prepares the renderer."""
        try:
            import vllm  # noqa: F401  the check that it is there
        except ImportError as error:
            raise MissingDependencyError(
                f"vLLM cannot be imported ({error}); install mixquant-agents[gpu] or mixquant-agents[cpu]"
            ) from error
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.executor import Executor

        from mixquant_agents.engine.vllm.child_process import guarded

        self.prompts = Prompts(Renderer(path, self.config), lambda: Renderer(path, self.config))
        self.tool_parser, self.reasoning_parser = parser_names(self.config, self.renderer)
        arguments = engine_arguments(self.config, path, self.reasoning_parser)
        made = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        self.renderer.max_model_len = made.model_config.max_model_len
        return made, guarded(Executor.get_class(made))

    def held_bytes(self) -> int | None:
        """Memory in use: of the GPUs (by all programs), or of this machine by the engine's processes on its CPU."""
        on_gpu = device_bytes()
        return resident_bytes(descendants(self.processes)) if on_gpu is None else on_gpu

    async def _stop(self) -> None:
        me = asyncio.current_task()
        await _cancel(list(self._turns))
        await self._grammars.close()
        if self.llm is not None:
            self.prompts.close()
            await asyncio.sleep(0)  # let the aborts leave
            processes = {*self._tree, *descendants(self.processes)}  # where the core is dead, its workers may live on
            self.llm.shutdown(timeout=SHUTDOWN_SECONDS)
            self.llm = None
            end_processes(processes, SHUTDOWN_SECONDS)
        await _cancel([task for task in asyncio.all_tasks(self.loop) if task is not me])

    # -- turns --

    @property
    def alive(self) -> bool:
        """Whether a turn may be handed over (read from any thread)."""
        return not self.dead and self.llm is not None and not self.llm.errored

    async def turn(self, request: EngineRequest, submitted: float, post: Post, history: TurnHistory) -> None:
        """Run one turn; every delta, or the error that ended it, goes to ``post``. ``history`` learns its prompt."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  narrows the type: a coroutine runs in a task
        self._turns[task] = post
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(
                watch(self.processes, self.config.liveness_seconds, lambda: bool(self._turns), self._end_stalled_turns),
                name="mixquant-liveness",
            )
        try:
            async with self._awake():
                prompt, params, meter, options = await self._prepare(request, submitted, history)
                meter.reuse = self._kept.take(request.thread_id, prompt["prompt_token_ids"], prompt["cache_salt"])
                await generate(
                    self.llm, prompt, params, request.request_id, meter, self._rows, lambda: self.recorder.preempted,
                    post, drafting=self._drafts(), **options,
                )  # fmt: skip
                self._note_use(meter)
        except Exception as error:
            with suppress(RuntimeError):
                post(self.translated(error))
        finally:
            del self._turns[task]

    def _end_stalled_turns(self) -> None:
        """The engine's processes have stopped: end the turns that wait for them; the next call starts an engine."""
        self.dead = True
        error = EngineDeadError(
            f"the engine's processes did nothing for {self.config.liveness_seconds:g} seconds (stopped, or hung in "
            "a driver), so this turn was given up; the next call starts a new engine. liveness_seconds sets the limit; "
            f"the engine's log is {self.log_path}"
        )
        for task, post in list(self._turns.items()):
            with suppress(RuntimeError):
                post(error)
            task.cancel()

    # -- prefixes: read ahead, held, released --

    async def prefetch(self, request: EngineRequest, *, growing: bool = False) -> int:
        """Read what is certain of a coming prompt; see :meth:`Engine.prefetch`."""
        _check_sendable(request)
        async with self._awake():
            return await self._read_ahead(request, growing=growing)

    async def _read_ahead(self, request: EngineRequest, *, growing: bool) -> int:
        if request.prompt_token_ids is None:
            certain = await self.prompts.certain(
                request.messages, request.tools, _variables(request), growing=growing, verbatim=request.verbatim_history
            )
            ids, written = certain.token_ids, certain.verbatim_tokens
            static = await self._static_tokens(request, ids, ahead=True)
        else:
            ids, written, static = list(request.prompt_token_ids), 0, request.static_tokens
        whole = self._in_blocks(min(len(ids), self.renderer.max_model_len - 1))
        if not whole:
            return 0
        keys = self._block_keys(request, static)
        if growing and self._turns:
            read = max(written, self._kept.read_length(ids, keys.salt))
            if not self.pieces.worth_reading(read, whole):
                return self._in_blocks(read)
        try:
            with self._kept.reading(ids[:whole], keys.salt):
                cached = await self._read(ids[:whole], keys, request.request_id, request.priority)
        except Exception as error:
            raise self.translated(error) from error
        self._kept.read_ahead(ids[:whole], cached, keys.salt)
        return whole

    def hold(self, request: EngineRequest, history: TurnHistory) -> None:
        """Hold the prefix of a thread whose tools run now (any thread may call): its prompt and answer."""
        if request.keep is None or request.thread_id is None:
            return
        until = time.monotonic() + request.keep.seconds
        keys = self._block_keys(request, history.prompt.static_tokens if history.prompt is not None else 0)
        ids = history.token_ids
        whole = self._in_blocks(max(0, len(ids) - 1))  # nobody has read the last token yet
        if not whole:
            return
        prefix = KeptPrefix(request.thread_id, tuple(ids[:whole]), keys, until)
        limit = request.keep.tokens
        with suppress(RuntimeError):  # the engine has just been closed
            self.loop.call_soon_threadsafe(self._kept.hold, prefix, limit)

    async def release(self, thread_id: str) -> None:
        """Hold nothing of a thread any more."""
        self._kept.release(thread_id)

    def _note_use(self, meter: StepMeter) -> None:
        """A turn has used the cache: ask again for the held prefixes that would be forgotten next."""
        cached = meter.cached_tokens or 0
        if meter.reuse is not None:
            self._kept.found(meter.reuse, cached, self._block)
        tokens = meter.prompt_tokens - cached + meter.decode_tokens
        for prefix in self._kept.used(tokens, self.recorder.kv_cache_usage, time.monotonic()):
            task = self.loop.create_task(self._refresh(prefix), name="mixquant-keep")
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _refresh(self, prefix: KeptPrefix) -> None:
        if self.asleep or self._changing.locked():  # a favour wakes nobody, and nobody waits for it
            self._kept.drop(prefix)
            return
        whole = self._in_blocks(len(prefix.token_ids))
        try:
            cached = await self._read(prefix.token_ids[:whole], prefix.keys, f"keep-{uuid.uuid4().hex}", 0)
        except Exception as error:  # holding is a favour: no turn fails for it
            logger.debug("a prefix could not be held: %s", error)
            self._kept.drop(prefix)
            return
        self._kept.refreshed(prefix, cached, self._block)

    async def _read(self, token_ids: Sequence[int], keys: BlockKeys, request_id: str, priority: int) -> int:
        """Have a prompt in the prefix cache; how many of its tokens were there."""
        from vllm.inputs import tokens_input

        meter = StepMeter(len(token_ids), time.monotonic())
        params = sampling_parameters(Sampling(temperature=0, max_tokens=1), {}, 1, keys.static)
        await generate(
            self.llm, tokens_input(list(token_ids), cache_salt=keys.salt), params, request_id, meter, None, lambda: 0,
            lambda item: None, priority=priority,
        )  # fmt: skip
        return meter.cached_tokens or 0

    def _in_blocks(self, tokens: int) -> int:
        """How many of so many tokens fill whole KV blocks."""
        return tokens // self._block * self._block

    @property
    def _lends(self) -> bool:
        """The policy, as the plugin follows it, keeps static beginnings exact; never where no plugin runs."""
        return bool(self.status.get("exact_static_prefix", False))

    def _block_keys(self, request: EngineRequest, static_tokens: int) -> BlockKeys:
        """What tells the request's KV blocks from those of others. Lent are whole blocks."""
        lent = self._in_blocks(static_tokens) if self._lends else 0
        static = StaticPrefix(lent, exact_salt(request.cache_salt)) if lent else None
        return BlockKeys(salted(self.policy.fingerprint, request.cache_salt), static)

    async def _prepare(
        self, request: EngineRequest, submitted: float, history: TurnHistory
    ) -> tuple[Any, Any, StepMeter, dict[str, Any]]:
        """Render, check and convert one request; nothing reaches vLLM before all of it succeeded."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import StructuredOutputsParams

        _check_sendable(request)
        if request.prompt_token_ids is None:
            rendered = await self.rendered(request)
        else:
            static = min(request.static_tokens, len(request.prompt_token_ids))
            rendered = RenderedPrompt(token_ids=list(request.prompt_token_ids), static_tokens=static)
            if not rendered.token_ids:
                raise RequestError("prompt_token_ids is empty; give at least one token, or messages")
        history.prompt, ids = rendered, rendered.token_ids
        self.renderer.check_length(len(ids), request.sampling.max_tokens)
        engine_params: dict[str, Any] = {}
        if (grammar := await self._grammar(request)) is not None:
            engine_params["structured_outputs"] = StructuredOutputsParams(structural_tag=grammar.tag)
        if tools_active(request.tools, request.tool_choice) or self.reasoning_parser is not None:
            # markers of calls and reasoning are special tokens in some models
            engine_params["skip_special_tokens"] = False
        room = self.renderer.max_model_len - len(ids)
        keys = self._block_keys(request, rendered.static_tokens)
        params = sampling_parameters(request.sampling, self._defaults, room, keys.static, **engine_params)
        if request.kv_transfer is not None:
            params.extra_args = {**(params.extra_args or {}), "kv_transfer_params": dict(request.kv_transfer)}
        options: dict[str, Any] = {"priority": request.priority}
        if request.trace_context and self.llm.observability_config.otlp_traces_endpoint:
            options["trace_headers"] = dict(request.trace_context)
        return (
            tokens_input(ids, cache_salt=keys.salt),
            params,
            StepMeter(
                len(ids),
                submitted,
                verbatim_tokens=rendered.verbatim_tokens if rendered.key is not None else None,
                prompt_change=rendered.change,
                static_tokens=keys.static.tokens if keys.static else 0,
                count_reasoning=self._count_reasoning,
            ),
            options,
        )

    async def rendered(self, request: EngineRequest) -> RenderedPrompt:
        """The request's messages and tools as a prompt."""
        self.prompts.check_characters(request.messages, request.sampling.max_tokens)
        variables = _variables(request)
        rendered = await self.prompts.render(
            request.messages, request.tools, variables, verbatim=request.verbatim_history
        )
        needed = len(rendered.token_ids) + (request.sampling.max_tokens or 1)
        if (
            rendered.verbatim_tokens and needed > self.renderer.max_model_len
        ):  # a template that drops thoughts is shorter
            plain = await self.prompts.render(request.messages, request.tools, variables, verbatim=False)
            change = "the conversation as it was written does not fit the context window"
            rendered = replace(plain, key=rendered.key, change=change)
        return replace(rendered, static_tokens=await self._static_tokens(request, rendered.token_ids))

    async def _static_tokens(self, request: EngineRequest, token_ids: Sequence[int], *, ahead: bool = False) -> int:
        """How many tokens of the request's prompt are its static beginning; 0 where nothing is lent, or nobody else
        has shown it (see :mod:`~mixquant_agents.engine.vllm.beginnings`). ``ahead``: it is read before a question."""
        if not self._lends:
            return 0
        static = await self.prompts.static_tokens(token_ids, request.messages, request.tools, _variables(request))
        if not self._in_blocks(static) or self.policy.reproducible:  # what others asked must not matter
            return static
        beginning = hash((tuple(token_ids[:static]), request.cache_salt))
        opens = not any(message.get("role") == "assistant" for message in request.messages)
        if ahead and opens:
            self._beginnings.will_be_shared(beginning)
        return static if self._beginnings.exact(beginning, opens=opens and not ahead) else 0

    async def _grammar(self, request: EngineRequest) -> Grammar | None:
        """The grammar of the answer, tried; away from the loop, for a schema may be large."""
        if not request.tools and request.schema is None and request.tool_choice == "auto":
            return None
        grammar = await asyncio.to_thread(grammar_of, request, self._tag_model, self.renderer.one_token)
        if grammar is not None:
            await self._grammars.check(grammar)
        return grammar

    def _vocabulary(self) -> str | None:
        """xgrammar's view of the tokenizer, as JSON; ``None`` where it has none but vLLM's own (Mistral's)."""
        from xgrammar import TokenizerInfo

        try:
            info = TokenizerInfo.from_huggingface(
                self.renderer.tokenizer, vocab_size=self.llm.model_config.get_vocab_size()
            )
        except Exception as error:  # a tokenizer of another kind: grammars are then converted only
            logger.debug("xgrammar does not know this tokenizer: %s", error)
            return None
        return str(info.serialize_json())

    def parser(self, request: EngineRequest) -> OutputParser:
        """A fresh parser for the answer to ``request``."""
        names = self.tool_parser, self.reasoning_parser
        parser = make_parser(
            names,
            self.renderer.tokenizer,
            request.tools,
            request.tool_choice,
            with_schema=request.schema is not None,
        )
        if request.tool_choice == "none" or not request.tools:
            return parser
        return CheckedCalls(parser, lambda: checked_tools(request.tools, request.tool_choice))

    @property
    def info(self) -> EngineInfo:
        """What this engine is, with ``auto`` resolved by the plugin."""
        from vllm.platforms import current_platform

        status = self.status
        return replace(
            assumed_info(self.config, self.renderer.max_model_len, self.policy),
            prefill_format=status.get("prefill_format", "exact"),
            decode_format=status.get("decode_format", "exact"),
            emulated=bool(status.get("emulated", False)),
            storage=status.get("storage"),
            device="cpu" if current_platform.is_cpu() else current_platform.get_device_name(),
            reasoning=self.reasoning_parser is not None,
        )

    async def stats(self) -> EngineStats:
        """The scheduler's newest state."""
        recorder = self.recorder
        return EngineStats(
            running=recorder.running,
            waiting=recorder.waiting,
            kv_cache_usage=recorder.kv_cache_usage,
            unfinished=self.llm.output_processor.get_num_unfinished_requests(),
            preempted=recorder.preempted,
            warmed_tokens=self._kept.warmed,
            kept_threads=len(self._kept),
            kept_hits=self._kept.hits,
            evicted=self._kept.evicted,
        )

    async def limits(self) -> dict[str, int]:
        """What the engine can hold: places of the KV cache, turns and rows of a step, tokens of a block, and whether
        the scheduler works a step ahead (1) or not (0)."""
        config = self.llm.vllm_config
        cache, scheduler = config.cache_config, config.scheduler_config
        return {
            "kv_tokens": int(cache.num_gpu_blocks) * int(cache.block_size),
            "max_num_seqs": int(scheduler.max_num_seqs),
            "max_num_batched_tokens": int(scheduler.max_num_batched_tokens),
            "block": int(cache.block_size),
            "lookahead": int(bool(scheduler.async_scheduling)),
        }

    def _drafts(self) -> bool:
        """Whether the policy in force has drafts, so that there is something to count."""
        return bool(self.status.get("draft", {}).get("tokens"))

    async def set_policy(self, policy: PrecisionPolicy) -> dict[str, Any]:
        """Switch the plugin's mode; see :meth:`VllmEngine.set_policy`."""
        if self._rows is None:
            raise ConfigError(
                "this engine runs without the plugin, because its policy is 'exact'; start it with a quantizing policy "
                "to switch later"
            )
        async with self._changing:
            await self.check_idle("the policy cannot change")
            await _cancel(list(self._background))
            await self._wake_up()
            try:
                answers = await self.llm.collective_rpc("mixquant_set_policy", args=(policy.model_dump(mode="json"),))
                if self.policy.draft != policy.draft:
                    await self.llm.engine_core.call_utility_async("mixquant_set_drafts", policy.draft is not None)
            except Exception as error:
                mixquant_error = self.translated(error)
                if isinstance(mixquant_error, EngineDeadError):
                    raise mixquant_error from error
                raise FormatRefusedError(f"policy {policy.name!r} is refused by the running engine: {error}") from error
            finally:
                self._kept.forget()  # read anew, they would be of another policy than their keys say
            self.policy, self.status = policy, dict(answers[0])
        return self.status

    async def sleep(self) -> Sleep:
        """Weights to the host's memory, the KV cache given up; see :meth:`Engine.sleep`."""
        async with self._changing:
            await self.check_idle("the engine cannot sleep")
            begun, before = time.monotonic(), device_bytes()
            if not self.asleep:
                await _cancel(list(self._background))
                try:
                    await self.llm.sleep(level=1)
                except Exception as error:
                    raise self.translated(error) from error
                self.asleep = True
                self._kept.forget()
            seconds, after = time.monotonic() - begun, device_bytes()
        freed = before - after if before is not None and after is not None else None
        return Sleep(way="host", seconds=seconds, freed_bytes=freed, held_bytes=before)

    async def wake(self) -> None:
        """Weights and twins back into the places that captured graphs know."""
        async with self._changing:
            await self._wake_up()

    async def _wake_up(self) -> None:
        """:meth:`wake` for who holds the lock."""
        if self.asleep:
            try:
                await self.llm.wake_up()
            except Exception as error:
                raise self.translated(error) from error
            self.asleep = False

    @asynccontextmanager
    async def _awake(self) -> AsyncIterator[None]:
        """The engine stays awake, and keeps its policy, while the body runs. Counted before the wait: what is rendered
        is no request of vLLM's yet, and would reach an engine that fell asleep meanwhile."""
        self._working += 1
        try:
            await self.wake()
            yield
        finally:
            self._working -= 1

    def _busy(self) -> int:
        """Turns and readings that run, from their rendering on; held prefixes that are asked for again do not count."""
        unfinished: int = self.llm.output_processor.get_num_unfinished_requests()
        return max(self._working, unfinished - len(self._background))

    async def check_idle(self, refusal: str) -> None:
        """Refuse something while turns are running. Those that were cancelled may leave first.

        Raises:
            ConfigError: they are; begins with ``refusal``.
        """
        if leaving := [task for task in self._turns if task.cancelling()]:
            await asyncio.wait(leaving, timeout=SHUTDOWN_SECONDS)
        if busy := self._busy():
            raise ConfigError(f"{refusal} while {busy} turns are running; wait for their end")

    async def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        self._kept.forget()
        if self.asleep:
            return
        try:
            await self.llm.reset_prefix_cache()
        except Exception as error:
            raise self.translated(error) from error

    def translated(self, error: Exception) -> MixQuantError:
        """Our error for vLLM's; a dead engine is marked, so that the next call starts another."""
        mixquant_error = turn_error(error, self.log_path)
        if isinstance(mixquant_error, EngineDeadError):
            self.dead = True
        return mixquant_error


def _variables(request: EngineRequest) -> dict[str, Any]:
    """Variables of the chat template."""
    effort = {} if request.reasoning_effort is None else {"reasoning_effort": request.reasoning_effort}
    return {**effort, **request.chat_template_kwargs}


def assumed_info(config: EngineConfig, window: int | None, policy: PrecisionPolicy | None = None) -> EngineInfo:
    """What an engine with these settings is, as far as it is known before it starts.

    Args:
        window: its context window in tokens, as far as known.
        policy: the policy in force, where it is not the one of the start any more.
    """
    policy = policy or config.policy
    return EngineInfo(
        engine="vllm",
        model=config.model,
        policy=policy.name,
        max_model_len=window,
        fingerprint=f"{config.fingerprint}:{policy.fingerprint}",
        token_ids=True,
    )


def _check_sendable(request: EngineRequest) -> None:
    """Refuse what the front end would note and then fail to send.

    Raises:
        RequestError: the priority is no 32-bit integer, or a text holds half a surrogate pair.
    """
    priority = request.priority
    if not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise RequestError(f"priority={priority!r} is no integer of 32 bits; lower runs earlier, 0 is the default")
    texts = {"cache_salt": request.cache_salt, "request_id": request.request_id}
    texts |= {f"trace_context[{name!r}]": value for name, value in (request.trace_context or {}).items()}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name} is {value!r}, not text")
        if has_lone_surrogate(value):
            raise RequestError(f"{name}={value!r} holds half of a surrogate pair; give Unicode text")


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _in_bootstrap() -> bool:
    """Whether a process spawned by vLLM is importing a script that starts engines at import."""
    import multiprocessing

    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _quiet(by_user: bool) -> None:
    """Keep vLLM's own log in this process off stdout, and silent: its errors reach the caller as exceptions."""
    if by_user:
        return
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # a CPU has no Triton, and needs none
    for handler in logging.getLogger("vllm").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
