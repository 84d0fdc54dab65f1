"""What a command was given: lists in one word, files to write, and the line itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.files import json_in, refuse_database

__all__ = [
    "comma_list",
    "comma_lists",
    "command_line",
    "engine_settings",
    "json_in",
    "output_file",
    "positive_numbers",
]


def comma_list(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``; nothing gives an empty list.

    Raises:
        ConfigError: a part between two commas, or at an end, is empty.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not all(parts):
        raise ConfigError(f"{text!r} has an empty part; give one comma between two of them, and none at an end")
    return [part for part in parts if part]


def comma_lists(texts: Sequence[str]) -> list[str]:
    """What a repeatable option was given, each with or without commas, in order and once.

    Raises:
        ConfigError: one has an empty part.
    """
    return list(dict.fromkeys(name for text in texts for name in comma_list(text)))


def positive_numbers(option: str, text: str, example: str) -> list[int]:
    """``"8,16"`` → ``[8, 16]``.

    Raises:
        ConfigError: there is none, or one is no whole number above 0; names the option and gives the example.
    """
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise ConfigError(f"{option} {text!r}: give numbers above 0, such as {example}")
    return [int(number) for number in numbers]


def engine_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``--engine NAME=VALUE`` as settings of an :class:`~mixquant_agents.config.EngineConfig`.

    A value is read as JSON where it is any (``0.5``, ``true``, ``[1, 2]``), else as text.

    Raises:
        ConfigError: no ``=``, or a name that the configuration does not have.
    """
    from mixquant_agents.config import EngineConfig

    known = sorted(EngineConfig.model_fields.keys() - {"model", "policy"})  # these two have options of their own
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            raise ConfigError(f"--engine {text}: give NAME=VALUE, NAME one of {', '.join(known)}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def command_line() -> str:
    """The command as it was given, for results that name the command which made them."""
    return " ".join(["mixquant", *sys.argv[1:]])


def output_file(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, and one that is a turn store, before the hours of work that it is for.

    Raises:
        ConfigError: it cannot, or is one.
    """
    if path is None:
        return
    try:
        there = path.exists()
        refuse_database(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}; name another file") from error
    if not there:
        path.unlink()
