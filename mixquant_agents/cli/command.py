"""What all commands have in common: short names of values in the help, ``-h``, and options by their earlier names."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ParameterInfo

__all__ = ["CONTEXT", "OLD_NAMES", "Command", "name_values"]

OLD_NAMES = {"--n": "--limit", "--out": "--output", "--policies": "--policy"}
"""Options that had another name in one command or the other; they are still understood where the new one exists."""

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

_VALUES: dict[type, str] = {int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}


class Command(TyperCommand):
    """One command of ``mixquant``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options and arguments, with earlier names replaced. No option means an endless number, or none."""
        known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        words = _renamed(args, {old: new for old, new in OLD_NAMES.items() if new in known})
        try:
            rest = super().parse_args(ctx, words)
            for param in self.params:
                value = ctx.params.get(param.name)
                if isinstance(value, float) and not math.isfinite(value):
                    raise typer.BadParameter(f"{value} is no finite number.", param_hint=f"'{param.opts[0]}'")
        except typer.BadParameter as error:
            error.message = error.message.replace("Value error, ", "")  # how pydantic begins, which checks for typer
            raise
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments by their names, without the Python type that typer adds, and options."""
        records = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        shown = [(param, *record) for param, record in records if record is not None]
        arguments = [(param.display_name_raw, text) for param, _, text in shown if isinstance(param, TyperArgument)]
        options = [(name, text) for param, name, text in shown if not isinstance(param, TyperArgument)]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _renamed(words: Sequence[str], names: dict[str, str]) -> list[str]:
    options = list(words[: words.index("--")] if "--" in words else words)
    renamed = []
    for word in options:
        name, equals, value = word.partition("=")
        renamed.append(names.get(name, name) + equals + value)
    return renamed + list(words[len(options) :])


def name_values(function: Callable[..., Any]) -> None:
    """Give each option of ``function`` that does not name its value a short word for it (``N``, ``PATH``), so that the
    help keeps its width for the sentence."""
    hints = get_type_hints(function, include_extras=True)
    for name in inspect.signature(function).parameters:
        hint = hints.get(name)
        if get_origin(hint) is not Annotated:
            continue
        kind, *extras = get_args(hint)
        for info in extras:
            if isinstance(info, ParameterInfo) and info.metavar is None:
                info.metavar = _word(kind)
    function.__annotations__ = hints  # as text, typer would evaluate them anew, to options without these words


def _word(kind: Any) -> str | None:
    """The word for a value of ``kind``; ``None`` for a flag, and for choices, which name themselves."""
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) in (Union, types.UnionType, list) and len(inner) == 1:
        return _word(inner[0])
    return None if get_origin(kind) is Literal else _VALUES.get(kind)
