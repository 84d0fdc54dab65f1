"""Documents and the passages they are cut into."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mixquant_tools.base import is_plain
from mixquant_tools.errors import ToolSetupError

__all__ = ["TEXT_SUFFIXES", "Document", "Passage", "read_folder", "split"]

TEXT_SUFFIXES = frozenset(
    {".md", ".rst", ".txt", ".text", ".adoc", ".org", ".html", ".tex", ".csv", ".json", ".yaml", ".toml", ".py"}
)
"""File endings :func:`read_folder` takes by default."""

_MAX_HEADING = 100
"""Characters of a heading that count: it stands in the title of every passage below it."""
_MAX_HEADINGS = 10_000
"""Headings of one document that count: each begins a passage."""
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__"})
_MAX_DEPTH = 32
_ENTRIES_PER_FILE = 50
"""Files and folders of any kind that may be looked at for each text file that may be read."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the path (or name) it is cited by."""

    path: str
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """Some consecutive lines of a document.

    Attributes:
        path: of the document, relative to the folder it was read from, with ``/``.
        start, end: first and last line, counted from 1.
        title: the document's title and the headings above the passage, joined by `` > ``.
        text: the lines.
    """

    path: str
    start: int
    end: int
    title: str
    text: str

    @property
    def source(self) -> str:
        """How it is cited: ``path:start-end``."""
        return f"{self.path}:{self.start}-{self.end}"

    @property
    def indexed(self) -> str:
        """What is searched: path and title count as text, so that a passage is found by what it is about."""
        return f"{self.path} {self.title}\n{self.text}"


def read_folder(
    folder: str | os.PathLike[str],
    *,
    suffixes: Iterable[str] = TEXT_SUFFIXES,
    max_files: int = 20_000,
    max_bytes: int = 4 * 2**20,
    max_total_bytes: int = 512 * 2**20,
) -> Iterator[Document]:
    """The text files below ``folder``, in path order. Passed over are hidden folders, links, hard links (the file may
    lie elsewhere, too), names with control characters or that are not UTF-8, folders deeper than 32, and files that are
    too large or not UTF-8.

    Args:
        suffixes: lower-case endings to take.
        max_files: most files read.
        max_bytes: largest file read.
        max_total_bytes: most bytes of all files together.

    Raises:
        ToolSetupError: ``folder`` is not a folder, or holds more than it may.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ToolSetupError(f"{os.fspath(folder)!r} is not a folder; name a folder with text files")
    endings = frozenset(suffixes)
    count = total = entries = 0
    root = root.resolve()  # it may be a link itself; what lies below may not
    for here, folders, names, handle in os.fwalk(root, follow_symlinks=False):
        relative = Path(here).relative_to(root)
        entries += len(folders) + len(names)
        if entries > _ENTRIES_PER_FILE * max_files:
            raise ToolSetupError(f"{os.fspath(folder)!r} holds more than {entries} files and folders; raise max_files")
        deepest = len(relative.parts) >= _MAX_DEPTH
        folders[:] = [] if deepest else sorted(name for name in folders if _is_walked(name))
        for name in sorted(names):
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in endings or not is_plain(name):
                continue
            text = _read_text(name, handle, max_bytes)
            if text is None:
                continue
            count += 1
            total += len(text)
            if count > max_files:
                raise ToolSetupError(f"{os.fspath(folder)!r} holds more than {max_files} text files; raise max_files")
            if total > max_total_bytes:
                raise ToolSetupError(
                    f"{os.fspath(folder)!r} holds more than {max_total_bytes} bytes of text; raise max_total_bytes"
                )
            yield Document((relative / name).as_posix(), text)


def _is_walked(name: str) -> bool:
    return not name.startswith(".") and name not in _SKIPPED_FOLDERS and is_plain(name)


def _read_text(name: str, folder: int, max_bytes: int) -> str | None:
    """The file's text, or ``None`` for links, special files, too large files and what is not UTF-8."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > max_bytes:
            return None
        try:
            return file.read(max_bytes).decode("utf-8")
        except (UnicodeDecodeError, OSError):
            return None


def split(document: Document, *, max_chars: int = 1_200, min_chars: int = 200) -> list[Passage]:
    """Cut a document at headings and blank lines into passages of at most ``max_chars`` characters.

    A line longer than that is cut into pieces (all with that line's number). Passages shorter than ``min_chars`` are
    joined to the next one of the same section.
    """
    passages: list[Passage] = []
    headings: list[str] = []
    lines: list[tuple[int, str]] = []
    size = 0

    def close() -> None:
        nonlocal size
        while lines and not lines[-1][1].strip():
            lines.pop()
        while lines and not lines[0][1].strip():
            lines.pop(0)
        if lines:
            title = " > ".join(part for part in (document.title, *headings) if part)
            text = "\n".join(text for _, text in lines)
            passages.append(Passage(document.path, lines[0][0], lines[-1][0], title, text))
        lines.clear()
        size = 0

    fenced = False
    room = _MAX_HEADINGS
    for number, line in enumerate(document.text.splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        heading = _heading(line) if room and not fenced else None
        if heading is not None:
            level, name = heading
            close()
            del headings[level - 1 :]
            headings.extend([""] * (level - 1 - len(headings)))
            headings.append(name)
            room -= 1
        for piece in _pieces(line, max_chars):
            if size + len(piece) > max_chars or (not piece.strip() and size > max_chars // 2):
                close()
            lines.append((number, piece))
            size += len(piece) + 1
    close()
    return _join_short(passages, min_chars, max_chars)


def _heading(line: str) -> tuple[int, str] | None:
    """Level and text of a Markdown heading. No pattern: one that leaves off what closes a heading would try every way
    to part the blanks of a long line."""
    level = len(line) - len(line.lstrip("#"))
    if not 1 <= level <= 6 or not line[level : level + 1].isspace():
        return None
    return level, line[level:].strip().rstrip("#").rstrip()[:_MAX_HEADING]


def _pieces(line: str, limit: int) -> Iterator[str]:
    """``line`` cut at blanks into pieces of at most ``limit`` characters; cost linear in the line."""
    begin = 0
    while len(line) - begin > limit:
        cut = line.rfind(" ", begin + limit // 2, begin + limit)
        cut = begin + limit if cut < 0 else cut
        yield line[begin:cut]
        begin = cut + (line[cut] == " ")
    yield line[begin:]


def _join_short(passages: list[Passage], min_chars: int, max_chars: int) -> list[Passage]:
    """A heading alone says little: it goes with what follows it."""
    joined: list[Passage] = []
    for passage in passages:
        before = joined[-1] if joined else None
        if before is not None and len(before.text) < min_chars and passage.title.startswith(before.title):
            text = "\n".join((before.text, *[""] * (passage.start - before.end - 1), passage.text))
            if len(text) <= max_chars:
                joined[-1] = Passage(passage.path, before.start, passage.end, passage.title, text)
                continue
        joined.append(passage)
    return joined
