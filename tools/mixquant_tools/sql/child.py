"""Runs in a process of its own: answers one statement after another, and dies at the time limit.

Started as ``python -I -S child.py SETTINGS`` (JSON), by :mod:`mixquant_tools.sql.worker`; standard library only. One
line of JSON for each question, one for each answer. SQLite heeds no interrupt while it prepares a statement, nor within
a function, so the limit is the kernel's: an alarm that nobody catches, and an address space of a fixed size.
"""

from __future__ import annotations

import base64
import json
import resource
import signal
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from typing import Any

ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "zipfile"})
MAX_VALUE = 200_000
"""Longest text or blob, in bytes."""
MAX_STATEMENT = 16 * 2**20
"""Longest ``CREATE`` statement that is read, in bytes; of longer ones than ``MAX_VALUE`` the beginning is shown."""
MAX_COLUMNS = 250
_INTERPRETER = 256 * 2**20  # address space that Python itself and its libraries may take
_MAX_WRITTEN = 16 * 2**20  # a database in WAL mode has an index of its log in a file; nothing else is written


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """The statement was refused: ``kind`` is ``"input"``, ``"denied"`` or ``"limit"``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def connect(settings: dict[str, Any]) -> sqlite3.Connection:
    """A connection for reading, with SQLite's own limits."""
    connection = sqlite3.connect(settings["uri"], uri=True, timeout=settings["seconds"] / 2)
    try:
        connection.execute(f"PRAGMA hard_heap_limit={int(settings['memory'])}")
        connection.execute("PRAGMA query_only=ON")
        # Else views could not call SQLite's own JSON aggregates. What nobody may call is refused in views, too.
        connection.execute("PRAGMA trusted_schema=ON")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA temp_store=MEMORY")  # what is sorted counts as memory, and fills no disk
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the schema, whatever its size
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, MAX_COLUMNS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, settings["max_sql"])
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
    except BaseException:
        connection.close()
        raise
    return connection


def rows_within(rows: Iterable[tuple[Any, ...]], settings: dict[str, Any], taken: int) -> tuple[list[list[Any]], bool]:
    """The first rows, as far as their number and bytes allow, and whether there are more. ``taken`` bytes are gone."""
    kept: list[list[Any]] = []
    for row in rows:
        cells = [_cell(value, settings["max_cell"]) for value in row]
        taken += len(_encoded(cells))
        if taken > settings["max_bytes"] and not kept:
            raise Refused("limit", f"one row has more than {settings['max_bytes']} bytes; name the columns you need")
        if taken > settings["max_bytes"] or len(kept) == settings["max_rows"]:
            return kept, True
        kept.append(cells)
    return kept, False


def _cell(value: Any, max_cell: int) -> Any:
    """A blob is told by its size and its beginning; texts were cut when they were read."""
    if not isinstance(value, bytes):
        return value
    return {"size": len(value), "start": base64.b64encode(value[:max_cell]).decode()}


def query(settings: dict[str, Any], sql: str) -> dict[str, Any]:
    """The answer to one ``SELECT``."""
    denied: list[str] = []

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action not in ALLOWED or (action == sqlite3.SQLITE_FUNCTION and second in FORBIDDEN_FUNCTIONS):
            denied.append(second or first or "this")
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    try:
        with closing(connect(settings)) as connection:
            max_text = 4 * settings["max_cell"] + 4  # bytes that surely hold one character more than is shown
            connection.text_factory = lambda data: data[:max_text].decode("utf-8", "replace")
            connection.set_authorizer(authorize)
            cursor = connection.execute(sql)
            if cursor.description is None:
                raise Refused("denied", "only reading with SELECT is allowed")
            names = [column[0][: settings["max_cell"]] for column in cursor.description]
            rows, more = rows_within(cursor, settings, len(_encoded(names)))
    except sqlite3.Error as error:
        raise _translated(error, denied) from None
    except ValueError as error:  # NUL characters, lone surrogates
        raise Refused("input", str(error)[:300]) from None
    return {"names": names, "rows": rows, "more": more}


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """The ``CREATE`` statements of all tables and views."""
    statement = "SELECT sql FROM sqlite_master WHERE type IN ('table', 'view') AND sql IS NOT NULL ORDER BY name"
    try:
        with closing(connect(settings)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_STATEMENT)
            connection.text_factory = lambda data: data[:MAX_VALUE].decode("utf-8", "replace")
            rows, more = rows_within(connection.execute(statement), {**settings, "max_rows": 10_000}, 0)
    except sqlite3.Error as error:
        raise _translated(error, []) from None
    return {"names": ["sql"], "rows": rows, "more": more}


def _translated(error: sqlite3.Error, denied: list[str]) -> Refused:
    text = str(error)
    if denied:
        return Refused("denied", f"only reading with SELECT is allowed ({denied[0][:60]!r} was refused)")
    if "too many columns" in text:
        return Refused("limit", f"an answer may have {MAX_COLUMNS} columns; name those you need")
    if any(words in text for words in ("too big", "too large", "too complex", "out of memory", "is full")):
        return Refused("limit", f"the statement or a value is too large ({text})")
    if "one statement" in text:
        return Refused("input", "send one statement at a time")
    if "readonly" in text:
        return Refused("denied", "the database is read-only")
    return Refused("input", f"SQLite says: {text[:300]}")


def _answer(settings: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    try:
        return describe(settings) if question["sql"] is None else query(settings, question["sql"])
    except Refused as refusal:
        return {"refused": refusal.kind, "text": str(refusal)}
    except MemoryError:
        return {"refused": "limit", "text": f"the statement needs more than {settings['memory']} bytes of memory"}


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _limits(settings: dict[str, Any]) -> None:
    for name, value in (
        ("RLIMIT_AS", settings["memory"] + _INTERPRETER),
        ("RLIMIT_FSIZE", _MAX_WRITTEN),
        ("RLIMIT_CORE", 0),
    ):
        _, hard = resource.getrlimit(getattr(resource, name))
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # else one that the parent ignores would be ignored here, too
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def main() -> None:
    settings = json.loads(sys.argv[1])
    _limits(settings)
    output = sys.stdout.buffer
    output.write(b"{}\n")  # ready
    output.flush()
    for line in sys.stdin.buffer:  # ends with the parent
        signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
        answer = _encoded(_answer(settings, json.loads(line.decode("utf-8", "surrogatepass"))))
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.write(answer + b"\n")
        output.flush()


if __name__ == "__main__":
    main()
