"""What a command was given: lists in one word, and the line itself."""

from __future__ import annotations

import sys

__all__ = ["comma_list", "command_line"]


def comma_list(text: str) -> list[str]:
    """``"a, b,"`` → ``["a", "b"]``."""
    return [name for part in text.split(",") if (name := part.strip())]


def command_line() -> str:
    """The command as it was given, for results that name the command which made them."""
    return " ".join(["mixquant", *sys.argv[1:]])
