"""Work with the shipped tools: what it consists of, how they show a file and a database, and the plural of a thing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

__all__ = ["Call", "Work", "numbered", "plural", "result", "schema"]

Call = tuple[str, dict[str, Any], str]
"""A tool's name, its arguments, and what it gives."""

Work = tuple[str, list[Call], str]
"""What is asked for, the calls that it takes, and the answer."""


def numbered(lines: Sequence[str]) -> str:
    """A file's lines, with their numbers."""
    return "\n".join(f"{index}\t{line}" for index, line in enumerate(lines, 1))


def schema(link: sqlite3.Connection) -> str:
    """The statements that made the tables."""
    return ";\n".join(str(row[0]) for row in link.execute("SELECT sql FROM sqlite_master ORDER BY name"))


def result(link: sqlite3.Connection, sql: str) -> str:
    """What a query gives: column names, then rows."""
    cursor = link.execute(sql)
    lines = [" | ".join(column[0] for column in cursor.description)]
    rows = [" | ".join("NULL" if cell is None else str(cell) for cell in row) for row in cursor]
    return "\n".join([*lines, *(rows or ["(no rows)"])])


def plural(thing: str) -> str:
    """Several of it."""
    return thing + ("es" if thing.endswith(("s", "x", "ch", "sh")) else "s")
