"""Files that commands write and read: written as a whole or not at all, and every failure in words."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError

__all__ = ["json_in", "json_object_in", "refuse_database", "write_whole"]

DATABASE = b"SQLite format 3\0"


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` as a whole: beside, then given its name, so that neither a full disk nor an interruption leaves
    half a file or costs the one that was there. Folders that are missing are made; devices and pipes are written to as
    they are.

    Raises:
        ConfigError: it cannot be written; or the file is a database, such as a turn store.
    """
    try:
        refuse_database(path)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; name another file") from error


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".mixquant-{os.getpid()}.part")
    try:
        try:
            with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except PermissionError:  # of a folder in which this file alone may be written
            if not target.exists():
                raise
            target.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
        with contextlib.suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def refuse_database(path: Path) -> None:
    """Keep results from being written over a turn store.

    Raises:
        ConfigError: the file is a database.
        OSError: it cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        if file.read(len(DATABASE)) == DATABASE:
            raise ConfigError(f"{path} is a database, such as a turn store, and would be lost; name another file")


def json_in(path: Path, what: str) -> Any:
    """The JSON in a file.

    Args:
        what: what to call the file in errors, for example the option that named it.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; name another file") from error
    except (ValueError, RecursionError) as error:  # also of bytes that are no text
        raise ConfigError(f"{what} {path} is not JSON: {error}") from error


def json_object_in(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; arguments and errors as of :func:`json_in`."""
    result = json_in(path, what)
    if not isinstance(result, dict):
        raise ConfigError(f"{what} {path} holds no JSON object")
    return result
