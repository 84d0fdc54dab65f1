"""Files below one folder, and nothing else.

Every path is walked from one descriptor of the root, opened once, component by component, without following links
(``openat`` with ``O_NOFOLLOW``): nothing that changes between a check and its use can lead outside, not even the root's
own path. Hard links, devices and pipes are refused, too.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from mixquant_tools.base import is_plain
from mixquant_tools.errors import AccessDeniedError, LimitError, NotFoundError, ToolInputError, ToolSetupError

__all__ = ["Folder"]

_MAX_DEPTH = 16
_MAX_PATH = 1_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """A folder an agent may work in.

    Args:
        root: the folder; it must exist.
        writable: whether files may be written, too.
        max_file_bytes: largest file read or written.
        max_total_bytes: most bytes of all files together, after a write.
        max_files: most files and folders, after a write; also the most that are listed or searched.
        seconds: longest time for one listing or search.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        writable: bool = True,
        max_file_bytes: int = 1_000_000,
        max_total_bytes: int = 50_000_000,
        max_files: int = 2_000,
        seconds: float = 5.0,
    ) -> None:
        """
        Raises:
            ToolSetupError: ``root`` is not a folder that can be read, or a limit makes no sense.
        """
        if not Path(root).is_dir():
            raise ToolSetupError(f"{os.fspath(root)!r} is not a folder")
        if min(max_file_bytes, max_total_bytes, max_files) < 1 or seconds <= 0:
            raise ToolSetupError("the limits of a folder must be positive")
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ToolSetupError(f"the folder {os.fspath(root)!r} cannot be read ({error.strerror})") from None
        weakref.finalize(self, os.close, self._root)
        self.writable = writable
        self.seconds = seconds
        self._max_file = max_file_bytes
        self._max_total = max_total_bytes
        self._max_files = max_files

    def read(self, path: str) -> str:
        """The file's text.

        Raises:
            AccessDeniedError: the path leads outside, or is no plain file.
            NotFoundError: there is no such file.
            LimitError: it is too large.
            ToolInputError: it is not UTF-8 text.
        """
        parts = _parts(path)
        if not parts:
            raise ToolInputError("name a file, not the folder itself")
        with self._parent(parts) as parent, _os_errors(path):
            handle = os.open(parts[-1], _FILE, dir_fd=parent)
            with os.fdopen(handle, "rb") as file:
                self._check_plain(os.fstat(handle), path)
                data = file.read(self._max_file + 1)
        if len(data) > self._max_file:
            raise LimitError(f"{path} is larger than {self._max_file} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise ToolInputError(f"{path} is not a UTF-8 text file") from None

    def write(self, path: str, text: str) -> int:
        """Write the whole file, making folders as needed; it is replaced at once or not at all. Returns its bytes.

        Raises:
            AccessDeniedError: read-only folder; the path leads outside; a link or special file is in the way.
            LimitError: the file, or all of them together, would be too large or too many.
        """
        if not self.writable:
            raise AccessDeniedError("this folder is read-only")
        parts = _parts(path)
        if not parts:
            raise ToolInputError("name a file, not the folder itself")
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > self._max_file:
            raise LimitError(f"the text has {len(data)} bytes, the limit for one file is {self._max_file}")
        missing, old = self._standing(parts, path)
        self._check_room(len(data) - (old.st_size if old else 0), missing)  # before any folder is made
        with self._parent(parts, make=True) as parent, _os_errors(path):
            draft = f".{secrets.token_hex(8)}.draft"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with os.fdopen(os.open(draft, flags, 0o600, dir_fd=parent), "wb") as file:
                    file.write(data)
                    if old is not None:  # who may read a file stays as it was
                        os.fchmod(file.fileno(), old.st_mode & 0o777)
                os.rename(draft, parts[-1], src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                if draft in os.listdir(parent):
                    os.unlink(draft, dir_fd=parent)
                raise
        return len(data)

    def entries(self, path: str = "") -> list[tuple[str, int]]:
        """``(path, bytes)`` of the files below ``path``, in order; links, special files and what has a name that
        could not be asked for are left out.

        Raises:
            LimitError: more than ``max_files`` files, folders and other things, or it took too long.
        """
        parts = _parts(path)
        files: list[tuple[str, int]] = []
        with self._parent([*parts, "x"]) as top:
            entries = self._walk(top, "/".join(parts), 0, time.monotonic() + self.seconds)
            for count, (name, size, kind) in enumerate(entries, start=1):
                if count > self._max_files:
                    raise LimitError(f"more than {self._max_files} files and folders; name a folder further down")
                if kind == "file" and is_plain(name):
                    files.append((name, size))
        return sorted(files)

    def _walk(
        self, folder: int, prefix: str, depth: int, deadline: float
    ) -> Iterator[tuple[str, int, Literal["file", "folder", "other"]]]:
        """Path, bytes and kind of all below the open ``folder``; a folder deeper than may be asked for is "other"."""
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, self._max_files + 1))
        for name in names:
            if time.monotonic() > deadline:
                raise LimitError(f"the folder was not looked through within {self.seconds:g} s; name one further down")
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError:  # gone since it was listed, or not ours to see
                continue
            path = f"{prefix}/{name}" if prefix else name
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                yield path, status.st_size, "file"
            elif stat.S_ISDIR(status.st_mode) and depth < _MAX_DEPTH:
                yield path, 0, "folder"
                try:
                    inner = os.open(name, _DIRECTORY, dir_fd=folder)
                except OSError:  # not ours to read, or no folder any more
                    continue
                try:
                    yield from self._walk(inner, path, depth + 1, deadline)
                finally:
                    os.close(inner)
            else:
                yield path, 0, "other"

    def _check_room(self, more_bytes: int, new: int) -> None:
        total = 0
        with self._parent(["x"]) as top:
            count = new
            for _, size, _ in self._walk(top, "", 0, time.monotonic() + self.seconds):
                count, total = count + 1, total + size
                if count > self._max_files:
                    raise LimitError(f"the folder is full: it may hold {self._max_files} files and folders")
        if count > self._max_files:
            raise LimitError(f"the folder is full: it may hold {self._max_files} files and folders")
        if total + more_bytes > self._max_total:
            raise LimitError(f"the folder is full: it may hold {self._max_total} bytes")

    def _standing(self, parts: list[str], path: str) -> tuple[int, os.stat_result | None]:
        """How many components of ``parts`` do not exist yet, and the status of the plain file at their end."""
        for depth, name in enumerate(parts):
            with self._parent(parts[: depth + 1]) as parent, _os_errors(path):
                try:
                    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                except FileNotFoundError:
                    return len(parts) - depth, None
        self._check_plain(status, path)
        return 0, status

    def _check_plain(self, status: os.stat_result, path: str) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise ToolInputError(f"{path} is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise AccessDeniedError(f"{path} is a link or special file")
        if status.st_nlink > 1:
            raise AccessDeniedError(f"{path} is a hard link to something that may lie outside")

    @contextmanager
    def _parent(self, parts: list[str], make: bool = False) -> Iterator[int]:
        """An open descriptor of the folder that holds ``parts[-1]``."""
        with _os_errors("/".join(parts[:-1])):
            here = os.open(".", _DIRECTORY, dir_fd=self._root)  # its own, so that threads do not share a position
        try:
            for part in parts[:-1]:
                with _os_errors("/".join(parts)):
                    if make:
                        with suppress(FileExistsError):
                            os.mkdir(part, 0o700, dir_fd=here)
                    inner = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            yield here
        finally:
            os.close(here)


def _parts(path: str) -> list[str]:
    """The components of a relative path.

    Raises:
        AccessDeniedError: it is absolute or holds ``..``.
        ToolInputError: it holds characters or sizes no file name should have.
    """
    if len(path) > _MAX_PATH:
        raise LimitError(f"the path has {len(path)} characters, the limit is {_MAX_PATH}")
    if not is_plain(path):
        raise ToolInputError("the path holds control characters")
    if path.startswith(("/", "\\", "~")) or "\\" in path or "://" in path or path[1:2] == ":":
        raise AccessDeniedError(f"{path[:80]!r} is not a path below this folder; give one like notes/today.txt")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise AccessDeniedError(f"{path[:80]!r} leads outside; '..' is not allowed")
    if len(parts) > _MAX_DEPTH or any(len(part.encode()) > 200 for part in parts):
        raise LimitError(f"the path is deeper than {_MAX_DEPTH} folders, or a name is longer than 200 bytes")
    return parts


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Operating-system errors in the words of this module."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path[:200]!r}; list the files to see what there is") from None
    except IsADirectoryError:
        raise ToolInputError(f"{path[:200]!r} is a folder") from None
    except OSError as error:
        # ELOOP and ENOTDIR are what O_NOFOLLOW answers at a link
        raise AccessDeniedError(f"{path[:200]!r} cannot be used ({error.strerror}); links are not followed") from None
