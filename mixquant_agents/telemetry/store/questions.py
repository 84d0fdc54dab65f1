"""What a thread was first asked: its name in lists, and what a search looks through.

Only known where content recording is on. The turn that started first says it, whatever is written first: a sub-agent's
turns start later than its agent's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixquant_agents.telemetry.store.content import unpack_content
from mixquant_agents.telemetry.store.sanitize import sanitize_value

__all__ = ["Asked", "fill_questions", "fold", "question_of", "write_questions"]

LONGEST = 500
"""Characters of a question that are kept."""


class Asked(NamedTuple):
    """What a turn of a thread was asked. ``started_us``: microseconds since the epoch."""

    thread_id: str
    started_us: int
    question: str


def question_of(messages: Sequence[Any]) -> str | None:
    """The text of the last user message, in one line; ``None`` where there is none. Earlier ones may be examples, or
    what a memory brought along."""
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            words = " ".join(_text(message.get("content")).split())
            if words:
                return words if len(words) <= LONGEST else f"{words[: LONGEST - 1]}…"
    return None


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    return " ".join(
        part if isinstance(part, str) else str(part.get("text", ""))
        for part in parts
        if isinstance(part, str | Mapping)
    )


def fold(text: str) -> str:
    """Text as a search compares it, whatever its case."""
    return text.casefold()


_PUT = """
INSERT INTO questions (thread_id, asked_us, question, folded) VALUES (?, ?, ?, ?)
ON CONFLICT (thread_id) DO UPDATE SET
    asked_us = excluded.asked_us, question = excluded.question, folded = excluded.folded
WHERE excluded.asked_us < asked_us
"""


def write_questions(connection: sqlite3.Connection, asked: Iterable[Asked]) -> None:
    """Keep the earliest question of each thread. Call it inside a transaction."""
    first: dict[str, Asked] = {}
    for entry in asked:
        if entry.thread_id not in first or entry.started_us < first[entry.thread_id].started_us:
            first[entry.thread_id] = entry
    rows = [(entry.thread_id, entry.started_us, _writable(entry.question)) for entry in first.values()]
    connection.executemany(_PUT, [(*row, fold(row[2])) for row in rows])


def _writable(question: str) -> str:
    """Content is packed, so that it may hold what no text column can."""
    return str(sanitize_value(question))


def fill_questions(connection: sqlite3.Connection) -> None:
    """The questions of a store that had none yet, from the contents that it holds."""
    turns = connection.execute(
        "SELECT thread_id, started_us, packed FROM turns JOIN contents ON contents.turn = turns.id "
        "WHERE thread_id IS NOT NULL ORDER BY thread_id, started_us"
    )
    asked: list[Asked] = []
    for thread, started_us, packed in turns:
        known = asked and asked[-1].thread_id == thread
        if known or not isinstance(thread, str) or not isinstance(started_us, int) or not isinstance(packed, bytes):
            continue
        question = question_of(unpack_content(packed).messages)
        if question is not None:
            asked.append(Asked(thread, started_us, question))
    write_questions(connection, asked)
