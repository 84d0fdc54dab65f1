"""Starts the jailed process, feeds it, watches its time and output, and kills it with all that is left of it.

What keeps a program in (Linux only; where Landlock or seccomp is missing, nothing runs):

- Landlock: it reads the Python installation and the system's libraries, and nothing else; no TCP; no signals to others
  (where the kernel knows these rules: 6.7 and 6.12).
- seccomp: no sockets, no new processes or programs, no ptrace, no mounts, no attributes of files, no leases on them or
  watches; ``EPERM`` for each.
- namespaces where allowed: a network without devices, and a memory disk as the only place to write (else it cannot
  write).
- limits: address space, CPU time, wall time, file size, open files, output.
- an empty environment, an empty folder, closed descriptors, its own session; the kernel kills it when the thread that
  started it ends.

What it can see nevertheless: whether a path exists, with size, times, owner and the target of a link (``stat`` and
``readlink`` need no right that could be taken), process numbers, the kernel's version, and the clock.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import LimitError, ToolError, ToolSetupError
from mixquant_tools.jail import landlock, seccomp

__all__ = ["PythonJail", "Run", "python_tool"]

_CHILD = Path(__file__).with_name("child.py")
_CLOSED = 97
_MAX_PROGRAM = 50_000
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_MAX_AT_ONCE = 4
_slots = threading.BoundedSemaphore(_MAX_AT_ONCE)
"""Of the whole process: jails are made freely, memory and processors are not."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a program did.

    Attributes:
        output: standard output and error as they came, at most the jail's ``max_output`` bytes.
        status: exit code; negative is the signal that ended it.
        seconds: wall time.
        stopped: why the jail killed it (``"time"`` or ``"output"``), else ``None``.
    """

    output: str
    status: int
    seconds: float
    stopped: str | None


class PythonJail:
    """Runs Python programs, each in a fresh process; in all jails of this process four run at once, others wait.

    Args:
        seconds: longest wall time; CPU time is limited to as much, rounded up.
        memory_bytes: most address space (the interpreter itself takes about 30 MB).
        max_output: most bytes printed.
        scratch_bytes: size of the memory disk the program may write to.
        packages: let programs import what is installed beside this package (numpy, say), read-only.
    """

    def __init__(
        self,
        *,
        seconds: float = 10.0,
        memory_bytes: int = 512 * 2**20,
        max_output: int = 20_000,
        scratch_bytes: int = 16 * 2**20,
        packages: bool = False,
    ) -> None:
        """
        Raises:
            ToolSetupError: this system cannot close the jail, or a limit makes no sense.
        """
        if not seccomp.supported() or landlock.abi() < 1:
            raise ToolSetupError(
                "the Python jail needs Linux on x86-64 or arm64 with Landlock (kernel 5.13 or later, enabled); "
                "without it, model-written programs would run with your rights, so none is run"
            )
        if seconds <= 0 or memory_bytes < 64 * 2**20 or max_output < 1 or scratch_bytes < 1:
            raise ToolSetupError("the jail needs time, at least 64 MiB of memory, and room for output")
        self._seconds = seconds
        self._max_output = max_output
        libraries = [path for path in sys.path if Path(path).name in _PACKAGE_FOLDERS] if packages else []
        installed = {os.path.realpath(path) for path in (sys.base_prefix, sysconfig.get_path("stdlib"))}
        system = {
            "/lib",
            "/lib64",
            "/usr/lib",
            "/usr/lib64",
            "/usr/share/zoneinfo",
            "/etc/ld.so.cache",
            "/etc/localtime",
        }
        self._settings = {
            "memory": memory_bytes,
            "cpu": int(seconds) + 1,
            "scratch": scratch_bytes,
            "readable": sorted({*installed, *system, *libraries}),
            "path": list(dict.fromkeys(libraries)),
        }

    def run(self, program: str) -> Run:
        """Run ``program`` to its end or to a limit.

        Raises:
            LimitError: others kept running for as long as this one might take; nothing ran.
            ToolError: the jail could not be closed; nothing ran.
        """
        if not _slots.acquire(timeout=self._seconds + 1):
            raise LimitError(f"{_MAX_AT_ONCE} other programs are running; run fewer at once")
        try:
            return self._run(program)
        finally:
            _slots.release()

    def _run(self, program: str) -> Run:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mixquant-jail-") as folder:
            settings = json.dumps({**self._settings, "folder": folder, "parent": os.getpid()})
            process = subprocess.Popen(  # noqa: S603 - our own child script, no shell
                [os.path.realpath(sys.executable), "-I", "-S", "-B", str(_CHILD), settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                data, stopped = self._exchange(process, program.encode("utf-8", "replace"), began + self._seconds)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output = data.decode("utf-8", "replace")
        if process.returncode == _CLOSED and "the jail could not be closed" in output:
            raise ToolError(output.strip()[:300])
        return Run(output, process.returncode, time.monotonic() - began, stopped)

    def _exchange(self, process: subprocess.Popen[bytes], program: bytes, deadline: float) -> tuple[bytes, str | None]:
        """Send the program and collect what it prints, until it ends or reaches a limit."""
        if process.stdin is None or process.stdout is None:
            raise ToolError("the jail's process has no pipes")
        with suppress(BrokenPipeError):
            process.stdin.write(program)
            process.stdin.close()
        collected = bytearray()
        with selectors.DefaultSelector() as selector, process.stdout as stream:
            selector.register(stream, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return bytes(collected), "time"
                piece = os.read(stream.fileno(), 65_536)
                if not piece:
                    break
                collected += piece
                if len(collected) > self._max_output:
                    return bytes(collected[: self._max_output]), "output"
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return bytes(collected), "time"
        return bytes(collected), None

    def as_text(self, program: str) -> str:
        """What the program printed.

        Raises:
            LimitError: it was stopped at a limit.
            ToolError: it ended with an error; the message ends with its traceback.
        """
        run = self.run(program)
        shown = run.output.strip()
        if run.stopped == "time" or run.status == -signal.SIGXCPU:
            raise LimitError(f"stopped after {self._seconds:g} s. Printed until then:\n{shown[-500:] or '(nothing)'}")
        if run.stopped == "output":
            raise LimitError(f"stopped: it printed more than {self._max_output} bytes, beginning with:\n{shown[:300]}")
        if run.status != 0:
            how = f"signal {-run.status}" if run.status < 0 else f"exit code {run.status}"
            raise ToolError(f"the program failed ({how}):\n{shown[-1_500:] or '(no output)'}")
        return shown or "(nothing printed; use print to see a value)"


class PythonArguments(BaseModel):
    """What to run."""

    program: str = Field(description="a whole Python program; print what you want to see", max_length=_MAX_PROGRAM)


def python_tool(jail: PythonJail | None = None, name: str = "run_python") -> StructuredTool:
    """A tool ``run_python(program)``; without ``jail``, one with the default limits."""
    jail = jail or PythonJail()
    return make_tool(
        jail.as_text,
        name=name,
        description="Run a Python program (no network, no files of the machine) and return what it prints.",
        arguments=PythonArguments,
    )
