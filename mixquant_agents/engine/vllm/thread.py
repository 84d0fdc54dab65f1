"""The one thread that owns an event loop and the ``AsyncLLM`` living on it.

``AsyncLLM`` belongs to one loop, agents have many. So callers cross over: coroutines come in by
``run_coroutine_threadsafe``, results go back by ``call_soon_threadsafe``. Nothing polls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.args import engine_arguments, start_environment
from mixquant_agents.engine.vllm.errors import start_error
from mixquant_agents.engine.vllm.model import check_hub, model_path
from mixquant_agents.engine.vllm.parsers import parser_names
from mixquant_agents.engine.vllm.progress import start_progress
from mixquant_agents.engine.vllm.recorder import StatsRecorder
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.engine.vllm.starting import StartControl
from mixquant_agents.errors import EngineClosedError, MissingDependencyError, MixQuantError

__all__ = ["EngineThread"]

logger = logging.getLogger("mixquant_agents.engine")
T = TypeVar("T")
_numbers = itertools.count(1)
_starting = threading.Lock()
"""A start changes the environment that its processes inherit, so starts happen one after the other."""


class EngineThread:
    """One running engine, from start to end. A dead one is replaced, never revived.

    Attributes:
        llm: vLLM's ``AsyncLLM``; touched only on the owner's loop.
        loop: the owner's event loop.
        renderer: messages → token ids.
        start_seconds: how long the start took.
        status: the plugin's answer to ``mixquant_status``, or ``{}`` without the plugin.
    """

    def __init__(self, config: EngineConfig, control: StartControl | None = None) -> None:
        """Start the engine and wait for it (blocking, seconds to minutes).

        Raises:
            ConfigError: a setting cannot be honoured.
            EngineStartError: the engine did not start.
            EngineClosedError: the start was given up through ``control``.
        """
        if _in_bootstrap():
            from mixquant_agents.engine.vllm.child import report_missing_guard

            report_missing_guard()
        self.config = config
        self.pid = os.getpid()
        self.recorder = StatsRecorder()
        self.dead = False
        self.start_seconds = 0.0
        self.status: dict[str, Any] = {}
        self.llm: Any = None
        self.renderer: Renderer
        self.tool_parser: str | None = None
        self.reasoning_parser: str | None = None
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixquant-render")
        self.large_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixquant-render-large")
        self.model_path = ""
        self.processes: list[int] = []
        self.log_path = str(Path(tempfile.gettempdir()) / f"mixquant-engine-{self.pid}-{next(_numbers)}.log")
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
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.large_pool.shutdown(wait=False, cancel_futures=True)
        if not self.dead:
            with suppress(OSError):
                os.unlink(self.log_path)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    async def _start(self, control: StartControl) -> None:
        config = self.config
        by_user = any(name in os.environ for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH"))
        try:
            with _starting, start_progress(config.model) as progress:
                control.check()
                progress.enter("looking at the model")
                path, local = model_path(config)
                self.model_path = path
                if not local and not os.environ.get("VLLM_USE_MODELSCOPE"):
                    check_hub(config)
                with start_environment(self.log_path, local):
                    control.check()
                    progress.enter("importing vLLM")
                    _quiet(by_user)
                    arguments, executor = self._vllm_arguments(path)
                    _quiet(by_user)
                    progress.enter("starting the engine's processes (weights, KV cache)")
                    from vllm.v1.engine.async_llm import AsyncLLM

                    with control.launching():
                        self.llm = AsyncLLM(
                            vllm_config=arguments,
                            executor_class=executor,
                            log_stats=bool(config.vllm_args.get("disable_log_stats", True)) is False,
                            log_requests=False,
                            stat_loggers=[self.recorder.factory()],
                        )
                    self.processes = control.processes
                _quiet(by_user)  # starting configured the log anew
                if config.policy.quantizes:
                    self.status = dict((await self.llm.collective_rpc("mixquant_status"))[0])
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

        from mixquant_agents.engine.vllm.child import guarded

        self.renderer = Renderer(path, self.config)
        self.tool_parser, self.reasoning_parser = parser_names(self.config, self.renderer)
        arguments = engine_arguments(self.config, path, self.reasoning_parser)
        made = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        self.renderer.max_model_len = made.model_config.max_model_len
        return made, guarded(Executor.get_class(made))

    async def _release(self) -> None:
        """End what was started beside the engine's processes."""

    async def _stop(self) -> None:
        me = asyncio.current_task()
        turns = [
            task for task in asyncio.all_tasks(self.loop) if task is not me and task.get_name().startswith("turn-")
        ]
        await _cancel(turns)
        await self._release()
        if self.llm is not None:
            await asyncio.sleep(0)  # let the aborts leave
            self.llm.shutdown()
            self.llm = None
        await _cancel([task for task in asyncio.all_tasks(self.loop) if task is not me])


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
