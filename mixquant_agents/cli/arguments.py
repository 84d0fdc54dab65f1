"""What a command was given: lists in one word, files to write, and the line itself."""

from __future__ import annotations

import sys
from pathlib import Path

from mixquant_agents.errors import ConfigError

__all__ = ["comma_list", "command_line", "output_file"]


def comma_list(text: str) -> list[str]:
    """``"a, b,"`` → ``["a", "b"]``."""
    return [name for part in text.split(",") if (name := part.strip())]


def command_line() -> str:
    """The command as it was given, for results that name the command which made them."""
    return " ".join(["mixquant", *sys.argv[1:]])


def output_file(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the hours of work that it is for.

    Raises:
        ConfigError: it cannot.
    """
    if path is None:
        return
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name another file") from error
    if not there:
        path.unlink()
