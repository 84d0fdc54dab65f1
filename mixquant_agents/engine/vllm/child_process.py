"""What our engine adds inside vLLM's own processes: a log file instead of noise, and no life after the parent's death.

vLLM's engine core is a spawned process. Unpickling the executor class imports this module there, before vLLM does
anything else. vLLM itself leaves the engine core running when the front end is killed with SIGKILL, and prints the
reason of a failed start only to the terminal.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from mixquant_agents.engine.vllm.leftovers import FOLDER_PREFIX

__all__ = ["ENV_LOG", "GUARD_MARK", "guarded", "report_missing_guard"]

ENV_LOG = "MIXQUANT_ENGINE_LOG"
"""``<pid of the front end>:<path>``; set only while an engine starts, inherited by its processes."""

GUARD_MARK = "mixquant: the script has no __main__ guard"


def _log_of_parent() -> str | None:
    """Path of the engine's log when this process was started for an engine, else ``None``."""
    owner, _, path = os.environ.get(ENV_LOG, "").partition(":")
    return path if path and owner != str(os.getpid()) else None


def report_missing_guard() -> None:
    """Called where a spawned process is about to start the engine again: tell the parent, and end quietly."""
    if path := _log_of_parent():
        with open(path, "a", encoding="utf-8") as file:
            file.write(GUARD_MARK + "\n")
    os._exit(1)


def _redirect(path: str) -> None:
    """Send this process's stdout and stderr (and those of the workers it will start) to the engine's log."""
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _end_with(handles: list[Any]) -> None:
    """Wait, without polling, for the parent's end; then take the workers along."""
    wait(handles)
    for worker in multiprocessing.active_children():
        worker.kill()
    folder = Path(os.environ.get("VLLM_RPC_BASE_PATH", ""))
    if folder.name.startswith(FOLDER_PREFIX):  # the parent was killed: it cannot remove its sockets any more
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _watch(handle: Any) -> None:
    threading.Thread(target=_end_with, args=([handle],), name="mixquant-parent-watch", daemon=True).start()


def _enter() -> bool:
    """Prepare this process if it was spawned for an engine. Whether its parent is being watched already."""
    path = _log_of_parent()
    if path is None:
        return False
    _redirect(path)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in a terminal is for the owner, who may mean one turn; vLLM's processes would all end
    try:
        _watch(os.pidfd_open(os.getppid()))
    except (AttributeError, OSError):
        return False  # not Linux, or forbidden by a sandbox
    if os.getppid() != int(os.environ[ENV_LOG].partition(":")[0]):
        os._exit(1)  # the parent died while this process was starting
    return True


_watched = _enter()

from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # noqa: E402  after the redirection
from vllm.v1.executor.uniproc_executor import UniProcExecutor  # noqa: E402  likewise


def _watch_sentinel() -> None:
    """Where there are no pidfds: multiprocessing's own pipe from the parent (another child may hold its end open)."""
    parent = multiprocessing.parent_process()
    if not _watched and parent is not None:
        _watch(parent.sentinel)


class GuardedMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's own; unpickling it in the engine core runs :func:`_enter`."""

    def _init_executor(self) -> None:
        _watch_sentinel()
        super()._init_executor()


class GuardedUniProcExecutor(UniProcExecutor):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's own; unpickling it in the engine core runs :func:`_enter`."""

    def _init_executor(self) -> None:
        _watch_sentinel()
        super()._init_executor()


def guarded(executor: type) -> type:
    """The guarded twin of vLLM's executor class; other executors (Ray, a user's own) are returned unchanged."""
    return {MultiprocExecutor: GuardedMultiprocExecutor, UniProcExecutor: GuardedUniProcExecutor}.get(
        executor, executor
    )
