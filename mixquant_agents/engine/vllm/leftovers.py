"""What an engine's processes leave behind: sockets, shared memory, processes that are slow to end.

vLLM removes them when everything ends in good order. Where a process was killed, or the front end lives on after its
engine, they would stay: sockets for good, shared memory until this process ends.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["FOLDER_PREFIX", "descendants", "end_processes", "segments_of", "socket_folder", "sockets_in", "unlink"]

FOLDER_PREFIX = "mixquant-sockets-"
_LONGEST_SOCKET = 107 - len("/00000000-0000-0000-0000-000000000000")
"""Characters of a Unix socket's path on Linux, without the name that vLLM gives it."""


def socket_folder() -> str | None:
    """The folder of this process for vLLM's sockets, for this user alone; it goes with the process. ``None`` where its
    path is too long for a socket."""
    return _folder(os.getpid())


@functools.lru_cache(maxsize=1)
def _folder(process_id: int) -> str | None:
    path = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
    if len(path) > _LONGEST_SOCKET:
        os.rmdir(path)
        return None
    atexit.register(_remove, path, process_id)
    return path


def _remove(path: str, process_id: int) -> None:
    if os.getpid() == process_id:  # a forked child ends without taking its parent's sockets along
        shutil.rmtree(path, ignore_errors=True)


def sockets_in(folder: str | None) -> frozenset[str]:
    """Paths in ``folder``."""
    if folder is None:
        return frozenset()
    with suppress(OSError):
        return frozenset(str(path) for path in Path(folder).iterdir())
    return frozenset()


def descendants(process_ids: Iterable[int]) -> list[Any]:
    """These processes and all that they have started, as ``psutil.Process``."""
    import psutil  # type: ignore[import-untyped]  # it has no stubs

    result = []
    for process_id in process_ids:
        with suppress(psutil.Error):
            root = psutil.Process(process_id)
            result += [root, *root.children(recursive=True)]
    return result


def segments_of(processes: Iterable[Any]) -> frozenset[str]:
    """Shared memory (``/dev/shm/…``) that these processes have mapped, and this one has not."""
    mapped: set[str] = set()
    for process in processes:
        mapped |= _mapped(process.pid)
    return frozenset(mapped - _mapped(os.getpid()))


def _mapped(process_id: int) -> set[str]:
    with suppress(OSError):
        lines = Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        return {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}  # noqa: S108  read, not written
    return set()


def end_processes(processes: Iterable[Any], seconds: float) -> None:
    """Kill what is left of these ``psutil.Process``, and wait for their end (at most ``seconds``)."""
    import psutil

    left = []
    for process in processes:
        with suppress(psutil.Error):  # it has ended, and maybe another process has its id by now
            process.kill()
            left.append(process)
    psutil.wait_procs(left, timeout=seconds)


def unlink(paths: Iterable[str]) -> None:
    """Remove these files, as far as they are still there."""
    for path in paths:
        with suppress(OSError):
            os.unlink(path)
