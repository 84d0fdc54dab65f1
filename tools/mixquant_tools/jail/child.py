"""Runs inside the jail's process: takes its rights away, then runs the program on standard input.

Started as ``python -I -S child.py SETTINGS`` (JSON), by :mod:`mixquant_tools.jail.runner`; standard library only. Exit
code 97 means that the jail could not be closed, and that nothing of the program ran.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import sys
from types import ModuleType, TracebackType

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import landlock  # type: ignore[import-not-found]  # found through the line above, inside the jail only
import seccomp  # type: ignore[import-not-found]  # found beside this file, by the line above

CLOSED = 97
_NEW_NETWORK_IPC_MOUNTS_USER = 0x40000000 | 0x08000000 | 0x00020000 | 0x10000000


def _namespaces(scratch: str, scratch_bytes: int) -> bool:
    """A network without devices, and a small memory disk as the only place to write. False where the kernel allows
    none; the program then cannot write at all (the network stays shut by the seccomp filter and Landlock)."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NETWORK_IPC_MOUNTS_USER) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        return False
    private, flags = 0x40000 | 0x4000, 0x2 | 0x4 | 0x8  # MS_PRIVATE|MS_REC; NOSUID, NODEV, NOEXEC
    if libc.mount(b"none", b"/", None, private, None) != 0:
        return False
    options = f"size={scratch_bytes},nr_inodes=1000,mode=700".encode()
    return bool(libc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", flags, options) == 0)


def _drop_capabilities() -> None:
    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    data = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(Header(0x20080522, 0)), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")


def _end_with(parent: int) -> None:
    """Killed when the parent ends. Set after all that changes who this process is, as that would take it away."""
    if ctypes.CDLL(None).prctl(1, 9, 0, 0, 0) != 0 or os.getppid() != parent:  # PR_SET_PDEATHSIG, SIGKILL
        raise OSError("the parent has ended")


def _limits(settings: dict[str, int]) -> None:
    for name, value in (
        ("RLIMIT_AS", settings["memory"]),
        ("RLIMIT_CPU", settings["cpu"]),
        ("RLIMIT_FSIZE", settings["scratch"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        # The processor's limit is told by a signal of its own first, where another second is left.
        resource.setrlimit(getattr(resource, name), (value, value + (name == "RLIMIT_CPU")))


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback that begins in the program, not in this file."""
    import traceback

    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def main() -> None:
    settings = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read().decode("utf-8", "replace")
    scratch = settings["folder"]
    try:
        writable = _namespaces(scratch, settings["scratch"])
        os.chdir(scratch)
        devices = ("/dev/null", "/dev/urandom", "/dev/zero")
        landlock.restrict([*settings["readable"], *devices], [scratch, "/dev/null"] if writable else ["/dev/null"])
        _drop_capabilities()
        _limits(settings)
        _end_with(settings["parent"])
        seccomp.install()
    except (OSError, KeyError, AttributeError) as error:
        print(f"the jail could not be closed: {error}", file=sys.stderr)  # noqa: T201 - the parent reads it
        sys.stderr.flush()
        os._exit(CLOSED)
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))] + settings["path"]
    for name in ("landlock", "seccomp", "json", "ctypes"):
        sys.modules.pop(name, None)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # -S leaves them out
    program_module = sys.modules["__main__"] = ModuleType("__main__")  # pickle and unittest look names up in it
    sys.argv = ["program.py"]
    sys.excepthook = _show_error
    sys.setrecursionlimit(1_000)
    code = compile(program, "program.py", "exec", dont_inherit=True)
    exec(code, program_module.__dict__)  # noqa: S102 - what this process is for


if __name__ == "__main__":
    main()
