"""A seccomp filter as classic BPF: what the jailed process may not ask of the kernel. Linux on x86-64 and arm64.

Imported inside the jail under ``python -I -S``: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import platform

__all__ = ["install", "supported"]

# name: (x86-64, arm64); None where the architecture has no such call. Numbers from the kernel's syscall tables.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # new processes and programs, other processes
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "setsid": (112, 157),
    "setpgid": (109, 154), "prlimit64": (302, 261), "setrlimit": (160, 164), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # files by their path, which Landlock does not see: a mode, an owner, a time, an attribute; watching a folder
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "getxattrat": (464, 464), "listxattrat": (465, 465),
    "file_getattr": (468, 468), "name_to_handle_at": (303, 264), "flock": (73, 32), "sync": (162, 81),
    "syncfs": (306, 267), "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    # who it is: a change would also take away the signal that ends it with its parent
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152), "setgroups": (116, 159),
    "capset": (126, 91), "get_robust_list": (274, 100),
    # the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "fsconfig": (431, 431), "fspick": (433, 433), "open_tree_attr": (467, 467), "statmount": (457, 457),
    "listmount": (458, 458), "listns": (470, 470), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "sethostname": (170, 161),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116), "personality": (135, 92),
    # memory that no limit counts, or one for all of the user's processes; what others share
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "io_setup": (206, 0), "timer_create": (222, 107),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_UNKNOWN = 471
"""The first call that this file does not know; a kernel that has it may let it do anything."""
_CLONE = {"x86_64": (56, 435), "aarch64": (220, 435)}  # clone, clone3
_CLONE_THREAD = 0x10000
# Calls of which some commands are allowed, and no others: there is always one more that reaches outside (a lease or a
# watch on a file that others use, an owner for signals, a pipe's size, a file's attributes).
_FCNTL = {"x86_64": 72, "aarch64": 25}
_FCNTL_COMMANDS = (0, 1030, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1032)  # duplicates, flags, record locks, F_GETPIPE_SZ
_IOCTL = {"x86_64": 16, "aarch64": 29}
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL = {"x86_64": 157, "aarch64": 167}
_PRCTL_COMMANDS = (2, 3, 15, 16, 0x53564D41)  # PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_SET_VMA

_LOAD, _EQUAL, _GREATER_EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def supported() -> bool:
    """Whether this processor's syscall numbers are known."""
    return platform.system() == "Linux" and platform.machine() in _ARCHITECTURES


def _filter() -> list[tuple[int, int, int, int]]:
    """``(code, jump if true, jump if false, value)``. ``seccomp_data``: number at 0, architecture at 4, arguments at
    16."""
    machine = platform.machine()
    column, architecture = _ARCHITECTURES[machine]
    clone, clone3 = _CLONE[machine]
    numbers = sorted({number for call in _DENIED.values() if (number := call[column]) is not None})
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_GREATER_EQUAL, 0, 1, 0x40000000),  # the x32 numbers of x86-64
        refuse,
        (_GREATER_EQUAL, 0, 1, _UNKNOWN),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_EQUAL, 0, 1, clone3),  # its flags lie in memory where no filter sees them; libc falls back to clone
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_EQUAL, 0, 4, clone),  # threads are allowed, processes are not
        (_LOAD, 0, 0, 16),
        (_BITS, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    for call, offset, commands in (
        (_FCNTL[machine], 24, _FCNTL_COMMANDS),
        (_IOCTL[machine], 24, _IOCTL_COMMANDS),
        (_PRCTL[machine], 16, _PRCTL_COMMANDS),
    ):
        lines += [(_EQUAL, 0, len(commands) + 3, call), (_LOAD, 0, 0, offset)]
        lines += [(_EQUAL, len(commands) - at, 0, command) for at, command in enumerate(commands)]
        lines += [refuse, (_RETURN, 0, 0, _ALLOW)]
    for number in numbers:
        lines += [(_EQUAL, 0, 1, number), refuse]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def install() -> None:
    """Put the filter on this process for good.

    Raises:
        OSError: the kernel refuses.
    """
    lines = _filter()
    array = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), array)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
