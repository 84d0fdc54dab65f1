"""Questions to an SQLite database: read-only connection, an authorizer, and limits of time, memory, rows and bytes.

Statements run in a process of their own (:mod:`mixquant_tools.sql.child`), because nothing else stops SQLite in all it
does: it heeds no interrupt while it prepares a statement, or within a function. The process is kept for the next
statement (about 1 ms each) and killed at the time limit (the next statement then starts a new one: about 0.1 s).
"""

from __future__ import annotations

import base64
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import AccessDeniedError, LimitError, ToolInputError, ToolSetupError
from mixquant_tools.sql.worker import Worker

__all__ = ["Database", "sql_tools"]

_MAX_SQL = 10_000
_MAX_AT_ONCE = 4
_REFUSALS = {"input": ToolInputError, "denied": AccessDeniedError, "limit": LimitError}


class Database:
    """One SQLite file, for reading only. Safe to share between threads; four statements run at once, others wait.

    Args:
        path: the file; it must exist.
        seconds: longest run of one statement.
        max_rows: most rows of one answer.
        max_cell: longest text of one cell, in characters; of a blob, as many bytes.
        memory_bytes: most memory SQLite may take for one statement.
        max_bytes: largest answer; rows beyond are left off.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 5.0,
        max_rows: int = 100,
        max_cell: int = 1_000,
        memory_bytes: int = 256 * 2**20,
        max_bytes: int = 2 * 2**20,
    ) -> None:
        if not Path(path).is_file():
            raise ToolSetupError(f"there is no database file {os.fspath(path)!r}")
        if seconds <= 0 or max_rows < 1 or max_cell < 1 or memory_bytes < 2**20 or max_bytes < 1_000:
            raise ToolSetupError(
                f"limits must be positive, memory_bytes at least {2**20} and max_bytes 1000, "
                f"not {seconds=}, {max_rows=}, {max_cell=}, {memory_bytes=}, {max_bytes=}"
            )
        self._seconds = seconds
        self._max_rows = max_rows
        self._max_cell = max_cell
        self._settings = {
            "uri": f"{Path(path).resolve().as_uri()}?mode=ro",
            "seconds": seconds,
            "memory": memory_bytes,
            "max_rows": max_rows,
            "max_cell": max_cell,
            "max_bytes": max_bytes,
            "max_sql": _MAX_SQL,
        }
        self._slots = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._idle: list[Worker] = []
        weakref.finalize(self, _end_all, self._idle)

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]], bool]:
        """Run one ``SELECT``.

        Returns:
            Column names, rows, and whether rows were left off. Texts longer than ``max_cell`` characters are cut
            somewhat later, blobs at ``max_cell`` bytes.

        Raises:
            ToolInputError: not valid SQL for this database.
            AccessDeniedError: the statement does more than read.
            LimitError: it took too long or too much memory, or handled too large values.
            ToolError: the process that reads the database died.
        """
        answer = self._ask(sql)
        rows = [
            tuple(base64.b64decode(cell["start"]) if isinstance(cell, dict) else cell for cell in row)
            for row in answer["rows"]
        ]
        return answer["names"], rows, answer["more"]

    def schema(self) -> str:
        """The ``CREATE`` statements of all tables and views.

        Raises:
            ToolError: as :meth:`query`.
        """
        answer = self._ask(None)
        statements = [str(row[0]) for row in answer["rows"]]
        return ";\n".join([*statements, "(more left off)"] if answer["more"] else statements)

    def as_text(self, sql: str) -> str:
        """The answer as lines of cells separated by `` | ``."""
        answer = self._ask(sql)
        rows = answer["rows"]
        lines = [" | ".join(self._cell(cell) for cell in row) for row in (answer["names"], *rows)]
        if answer["more"] and len(rows) == self._max_rows:
            lines.append(f"(more rows left off; the limit is {self._max_rows}: add a condition or an aggregate)")
        elif answer["more"]:
            lines.append(f"(more rows left off after {len(rows)}: they are too large; name the columns you need)")
        elif not rows:
            lines.append("(no rows)")
        return "\n".join(lines)

    def close(self) -> None:
        """End the processes that wait for a statement. The next statement starts one. Idempotent."""
        _end_all(self._idle)

    def _ask(self, sql: str | None) -> dict[str, Any]:
        if sql is not None and len(sql) > _MAX_SQL:
            raise LimitError(f"the statement has {len(sql)} characters, the limit is {_MAX_SQL}")
        if not self._slots.acquire(timeout=self._seconds):
            raise LimitError(f"{_MAX_AT_ONCE} other statements are running; send fewer at once")
        try:
            worker = self._worker()
            answer = worker.ask(sql)
            self._idle.append(worker)
        finally:
            self._slots.release()
        if "refused" in answer:
            raise _REFUSALS[answer["refused"]](answer["text"])
        return answer

    def _worker(self) -> Worker:
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return Worker(self._settings)
            if worker.usable:
                return worker
            worker.end()

    def _cell(self, value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, dict):
            return f"<{value['size']} bytes>"
        text = str(value).replace("\r", "\\r").replace("\n", "\\n")
        return text if len(text) <= self._max_cell else f"{text[: self._max_cell]}…"


def _end_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()


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
