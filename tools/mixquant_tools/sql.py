"""Questions to an SQLite database: read-only connection, an authorizer, time, row and size limits.

The time limit is an interrupt, which SQLite heeds between rows, not within a function. So no value may be long, and the
functions whose time or memory grows faster than their arguments are replaced or refused.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import AccessDeniedError, LimitError, ToolInputError, ToolSetupError

__all__ = ["Database", "sql_tools"]

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset(
    {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "zipfile"}
    | {"json_group_array", "json_group_object", "json_patch", "json_pretty"}  # grow without bound, or quadratic
)
_MAX_SQL = 10_000
_MAX_VALUE = 200_000
"""Longest text or blob, in bytes."""
_MAX_COLUMNS = 250
_MAX_TRIMMED = 100


class Database:
    """One SQLite file, for reading only.

    Args:
        path: the file; it must exist.
        seconds: longest run of one statement.
        max_rows: most rows of one answer.
        max_cell: longest text of one cell, in characters.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, seconds: float = 5.0, max_rows: int = 100, max_cell: int = 1_000
    ) -> None:
        if not Path(path).is_file():
            raise ToolSetupError(f"there is no database file {os.fspath(path)!r}")
        if seconds <= 0 or max_rows < 1 or max_cell < 1:
            raise ToolSetupError(f"limits must be positive, not {seconds=}, {max_rows=}, {max_cell=}")
        self._uri = f"{Path(path).resolve().as_uri()}?mode=ro"
        self._seconds = seconds
        self._max_rows = max_rows
        self._max_cell = max_cell

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._uri, uri=True, timeout=self._seconds, check_same_thread=False)
        try:
            self._limit(connection)
        except sqlite3.Error as error:  # no database, or one that somebody has locked
            connection.close()
            raise self._translated(error, []) from None
        return connection

    def _limit(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA query_only=ON")
        # Else a view could not call what is replaced below. What nobody may call is refused in views, too.
        connection.execute("PRAGMA trusted_schema=ON")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the schema, whatever its size
        for name, count, function in _SAFER:
            connection.create_function(name, count, function, deterministic=True)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, _MAX_COLUMNS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        most = 4 * self._max_cell + 4  # bytes that surely hold one character more than is shown
        connection.text_factory = lambda data: data[:most].decode("utf-8", "replace")

    @contextmanager
    def _in_time(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Interrupts the connection when its time is up."""
        timer = threading.Timer(self._seconds, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # the connection must not be closed under it

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]], bool]:
        """Run one ``SELECT``.

        Returns:
            Column names, rows, and whether rows were left off.

        Raises:
            ToolInputError: not valid SQL for this database.
            AccessDeniedError: the statement does more than read.
            LimitError: it took too long or handled too large values.
        """
        denied: list[str] = []

        def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
            if action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and second in _FORBIDDEN_FUNCTIONS):
                denied.append(second or first or "this")
                return sqlite3.SQLITE_DENY
            return sqlite3.SQLITE_OK

        with closing(self._connect()) as connection, self._in_time(connection):
            connection.set_authorizer(authorize)
            try:
                cursor = connection.execute(sql)
                rows = cursor.fetchmany(self._max_rows + 1)
            except sqlite3.Error as error:
                raise self._translated(error, denied) from None
            except ValueError as error:  # NUL characters
                raise ToolInputError(str(error)) from None
            if cursor.description is None:
                raise AccessDeniedError("only reading with SELECT is allowed")
            names = [column[0] for column in cursor.description]
        return names, rows[: self._max_rows], len(rows) > self._max_rows

    def _translated(self, error: sqlite3.Error, denied: list[str]) -> Exception:
        text = str(error)
        if denied:
            return AccessDeniedError(f"only reading with SELECT is allowed ({denied[0][:60]!r} was refused)")
        if "interrupted" in text:
            return LimitError(f"the statement ran longer than {self._seconds:g} s and was stopped; ask for less")
        if "too big" in text or "too large" in text or "too complex" in text:
            return LimitError(f"the statement or a value is too large ({text})")
        if "too many columns" in text:
            return LimitError(f"an answer may have {_MAX_COLUMNS} columns; name those you need")
        if "user-defined function" in text:
            return LimitError(
                f"replace, or trim with more than {_MAX_TRIMMED} characters to trim, was asked for too much, or for "
                "text that is not UTF-8"
            )
        if "one statement" in text:
            return ToolInputError("send one statement at a time")
        if "readonly" in text:
            return AccessDeniedError("the database is read-only")
        return ToolInputError(f"SQLite says: {text[:300]}")

    def schema(self) -> str:
        """The ``CREATE`` statements of all tables and views."""
        with closing(self._connect()) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            query = "SELECT sql FROM sqlite_master WHERE type IN ('table', 'view') AND sql IS NOT NULL ORDER BY name"
            return ";\n".join(str(row[0]) for row in connection.execute(query))

    def as_text(self, sql: str) -> str:
        """The answer as lines of cells separated by `` | ``."""
        names, rows, more = self.query(sql)
        lines = [" | ".join(names), *(" | ".join(self._cell(cell) for cell in row) for row in rows)]
        if more:
            lines.append(f"(more rows left off; the limit is {self._max_rows}: add a condition or an aggregate)")
        elif not rows:
            lines.append("(no rows)")
        return "\n".join(lines)

    def _cell(self, value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, bytes):
            return f"<{len(value)} bytes>"
        text = str(value).replace("\n", "\\n")
        return text if len(text) <= self._max_cell else f"{text[: self._max_cell]}…"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _instr(text: Any, part: Any) -> int | None:
    if text is None or part is None:
        return None
    if isinstance(text, bytes) and isinstance(part, bytes):
        return text.find(part) + 1
    return _text(text).find(_text(part)) + 1


def _replace(text: Any, old: Any, new: Any) -> str | None:
    if text is None or old is None or new is None:
        return None
    whole, part, other = _text(text), _text(old), _text(new)
    if not part:
        return whole
    if len(whole) + whole.count(part) * (len(other) - len(part)) > _MAX_VALUE:
        raise ValueError("the result is too long")
    return whole.replace(part, other)


def _trimmer(method: str) -> Callable[[Any, Any], str | None]:
    def trim(text: Any, marks: Any) -> str | None:
        if text is None or marks is None:
            return None
        if len(_text(marks)) > _MAX_TRIMMED:
            raise ValueError("too many characters to trim")
        return str(getattr(_text(text), method)(_text(marks)))

    return trim


_SAFER: tuple[tuple[str, int, Callable[..., Any]], ...] = (
    ("instr", 2, _instr),
    ("replace", 3, _replace),
    *((name, 2, _trimmer(method)) for name, method in (("trim", "strip"), ("ltrim", "lstrip"), ("rtrim", "rstrip"))),
)
"""SQLite's own take time that grows with the product of their arguments' lengths; these do the same in linear time."""


class QueryArguments(BaseModel):
    """What to ask the database."""

    sql: str = Field(description="one SELECT statement in SQLite's dialect", min_length=1, max_length=_MAX_SQL)


class NoArguments(BaseModel):
    """Nothing."""


def sql_tools(database: Database) -> list[BaseTool]:
    """``describe_database()`` and ``query_database(sql)``."""
    return [
        make_tool(
            database.schema,
            name="describe_database",
            description="Show the tables of the database and their columns.",
            arguments=NoArguments,
        ),
        make_tool(
            lambda sql: database.as_text(sql),
            name="query_database",
            description="Run one SELECT statement on the SQLite database and return its rows.",
            arguments=QueryArguments,
        ),
    ]
