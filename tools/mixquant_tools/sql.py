"""Questions to an SQLite database: read-only connection, an authorizer, time, row and size limits."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import AccessDeniedError, LimitError, ToolInputError, ToolSetupError

__all__ = ["Database", "sql_tools"]

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "zipfile"})
_MAX_SQL = 10_000
_STEPS_BETWEEN_CHECKS = 2_000


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
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")  # views and triggers of a hostile file call nothing dangerous
        connection.execute("PRAGMA cell_size_check=ON")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 20)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        return connection

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

        deadline = time.monotonic() + self._seconds
        with closing(self._connect()) as connection:
            connection.set_authorizer(authorize)
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_CHECKS)
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
        if "one statement" in text:
            return ToolInputError("send one statement at a time")
        if "readonly" in text:
            return AccessDeniedError("the database is read-only")
        return ToolInputError(f"SQLite says: {text[:300]}")

    def schema(self) -> str:
        """The ``CREATE`` statements of all tables and views."""
        with closing(self._connect()) as connection:
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
