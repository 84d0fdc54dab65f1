"""A notebook the agent writes itself: short notes in one SQLite file, found again by their words."""

from __future__ import annotations

import os
import sqlite3
import threading
from datetime import UTC, datetime

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import LimitError, ToolSetupError
from mixquant_tools.retrieval.keywords import KeywordIndex

__all__ = ["NoteBook", "note_tools"]

_MAX_NOTE = 4_000


class NoteBook:
    """Notes by owner (for example a user or a thread). Several processes may share the file.

    Args:
        path: SQLite file; ``":memory:"`` keeps notes for this process alone.
        max_notes: most notes of one owner.
        max_chars: most characters of one owner's notes: all are read again after a new one (about 1 s for a million).
    """

    def __init__(
        self, path: str | os.PathLike[str] = ":memory:", *, max_notes: int = 10_000, max_chars: int = 2_000_000
    ) -> None:
        self._max_notes = max_notes
        self._max_chars = max_chars
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(os.fspath(path), check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, text TEXT NOT NULL, "
                "at TEXT NOT NULL, UNIQUE (owner, text))"
            )
        except sqlite3.Error as error:
            raise ToolSetupError(f"cannot keep notes in {os.fspath(path)!r}: {error}; name a writable file") from error
        self._indexes: dict[str, tuple[tuple[int, int], list[tuple[int, str]], KeywordIndex]] = {}

    def add(self, text: str, owner: str = "") -> int:
        """Keep a note; the same text is kept once. Returns its number.

        Raises:
            LimitError: too long, or the notebook is full.
        """
        if len(text) > _MAX_NOTE:
            raise LimitError(f"the note has {len(text)} characters, the limit is {_MAX_NOTE}; shorten it")
        query = "SELECT id FROM notes WHERE owner = ? AND text = ?"
        with self._lock:
            kept = self._database.execute(query, (owner, text)).fetchone()
            if kept is None:
                total = "SELECT count(*), coalesce(sum(length(text)), 0) FROM notes WHERE owner = ?"
                count, chars = self._database.execute(total, (owner,)).fetchone()
                if count >= self._max_notes:
                    raise LimitError(f"the notebook is full ({self._max_notes} notes)")
                if chars + len(text) > self._max_chars:
                    raise LimitError(f"the notebook is full ({chars} of {self._max_chars} characters); write less")
                values = (owner, text, datetime.now(UTC).isoformat(timespec="seconds"))
                self._database.execute("INSERT OR IGNORE INTO notes (owner, text, at) VALUES (?, ?, ?)", values)
                kept = self._database.execute(query, (owner, text)).fetchone()  # another process may have been first
            return int(kept[0])

    def all(self, owner: str = "") -> list[tuple[int, str]]:
        """``(number, text)`` of every note, oldest first."""
        with self._lock:
            query = "SELECT id, text FROM notes WHERE owner = ? ORDER BY id"
            return [(int(number), str(text)) for number, text in self._database.execute(query, (owner,))]

    def search(self, query: str, k: int = 5, owner: str = "") -> list[tuple[int, str]]:
        """``(number, text)`` of the notes that best match the words of ``query``."""
        notes = self.all(owner)
        if not notes:
            return []
        state = (len(notes), notes[-1][0])
        cached = self._indexes.get(owner)
        if cached is None or cached[0] != state:
            cached = (state, notes, KeywordIndex([text for _, text in notes]))
            self._indexes[owner] = cached
        return [cached[1][item] for item, _ in cached[2].search(query, k)]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._database.close()


class SaveArguments(BaseModel):
    """What to remember."""

    text: str = Field(description="one fact, as a full sentence", min_length=1, max_length=_MAX_NOTE)


class RecallArguments(BaseModel):
    """What to recall."""

    query: str = Field(description="what the note is about", min_length=1, max_length=500)
    k: int = Field(default=5, description="most notes wanted", ge=1, le=20)


def note_tools(book: NoteBook, owner: str = "") -> list[BaseTool]:
    """``save_note(text)`` and ``recall_notes(query, k)`` over one owner's notes."""

    def save_note(text: str) -> str:
        return f"Saved as note {book.add(text, owner)}."

    def recall_notes(query: str, k: int = 5) -> str:
        notes = book.search(query, k, owner)
        # the further lines of a note are marked, so that none looks like another note
        shown = [f"[note {number}] " + "\n> ".join(text.splitlines()) for number, text in notes]
        return "\n".join(shown) or "No note matches; try other words."

    return [
        make_tool(save_note, name="save_note", description="Remember a fact for later.", arguments=SaveArguments),
        make_tool(
            recall_notes,
            name="recall_notes",
            description="Find remembered facts by their words.",
            arguments=RecallArguments,
        ),
    ]
