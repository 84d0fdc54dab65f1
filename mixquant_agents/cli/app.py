"""Puts the commands together and turns every error into one readable line with the right exit code."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mixquant_agents._version import __version__
from mixquant_agents.cli.command import CONTEXT, Command, name_values
from mixquant_agents.errors import ConfigError, MixQuantError, RequestError

__all__ = ["COMMANDS", "build", "run"]

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

GROUP = "mixquant.commands"
"""Entry points of this group are commands of other packages: ``"group.command"`` or ``"command"`` → a function."""

COMMANDS: dict[str, str] = {
    "doctor": "doctor",
    "chat": "chat",
    "dashboard": "dashboard",
    "report": "report",
    "fidelity": "fidelity",
    "calibrate": "calibrate",
    "acceptance": "acceptance",
    "serve": "serve",
    "plan": "plan",
    "bench prefill": "bench.prefill",
    "bench plan": "bench.plan",
    "bench turns": "bench.turns",
    "bench store": "bench.store",
}
"""``"group command"`` or ``"command"`` → the module below ``mixquant_agents.cli`` whose ``command`` function it is."""


def build() -> typer.Typer:
    """The whole command tree. Modules are thin: what is heavy is imported when a command runs."""
    app = typer.Typer(
        name="mixquant",
        help="LangGraph agents on a local vLLM engine that reads in low precision and writes exactly.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its boxes leave a third of 80 columns to the sentences
        context_settings=CONTEXT,
    )
    app.callback()(_root)
    groups: dict[str, typer.Typer] = {}
    foreign, broken = _foreign_commands()
    commands = {**foreign, **broken, **_own_commands()}
    for path in sorted(commands, key=lambda path: _FIRST.index(path) if path in _FIRST else len(_FIRST)):
        function = commands[path]
        *group, name = path.split()
        target = app
        if group:
            if group[0] not in groups:
                groups[group[0]] = typer.Typer(
                    no_args_is_help=True,
                    help=_GROUP_HELP.get(group[0]),
                    rich_markup_mode=None,
                    context_settings=CONTEXT,
                )
                app.add_typer(groups[group[0]], name=group[0])
            target = groups[group[0]]
        name_values(function)
        settings = {**CONTEXT, "ignore_unknown_options": path in broken}  # what is broken says so, whatever it is given
        target.command(name, cls=Command, context_settings=settings)(function)
    return app


def _own_commands() -> dict[str, Callable[..., Any]]:
    return {path: importlib.import_module(f"mixquant_agents.cli.{module}").command for path, module in COMMANDS.items()}


def _foreign_commands() -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
    """Commands of other packages by their words, and those that cannot be loaded, which say so when called."""
    commands: dict[str, Callable[..., Any]] = {}
    broken: dict[str, Callable[..., Any]] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            commands[entry.name.replace(".", " ")] = entry.load()
        except Exception as error:  # another package's fault must not take this one's commands away
            broken[entry.name.replace(".", " ")] = _failing(entry, error)
    return commands, broken


def _failing(entry: importlib.metadata.EntryPoint, error: Exception) -> Callable[[list[str] | None], None]:
    package = entry.dist.name if entry.dist is not None else entry.module
    reason = f"{type(error).__name__}: {error}"

    def command(words: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        raise ConfigError(f"the command of {package!r} cannot be loaded ({reason}); reinstall or remove that package")

    command.__doc__ = f"Cannot be loaded: {reason}"
    return command


_FIRST = ("demo", "chat", "dashboard", "report", "doctor")
"""What a newcomer wants first, first in the list."""

_GROUP_HELP = {"bench": "Measure speed, answers and overhead, here."}


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mixquant-agents {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line (``sys.argv[1:]`` by default) and return its exit code; no traceback ever reaches the user
    unless ``MIXQUANT_DEBUG=1`` asks for it."""
    try:
        with _ended_in_order():
            build()(args=None if argv is None else list(argv), prog_name="mixquant")
    except SystemExit as stop:  # typer has already shown usage errors
        if stop.code in (INTERRUPTED, TERMINATED):
            if sys.stderr.isatty():
                print(file=sys.stderr)  # noqa: T201 - the terminal has echoed ^C behind whatever stood there
            _say("interrupted" if stop.code == INTERRUPTED else "terminated")
        return stop.code if isinstance(stop.code, int) else OK
    except (ConfigError, RequestError) as error:
        _say(error)
        return USAGE
    except (MixQuantError, OSError) as error:
        _say(error)
        return FAILED
    except Exception as error:  # the last line of defence: a bug of ours, reported in one line
        _say(f"unexpected {type(error).__name__}: {error} (a bug; MIXQUANT_DEBUG=1 shows where)")
        return FAILED
    return OK


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM unwinds the command as Ctrl-C does: engines and servers that it started must not outlive it."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the ending: `timeout` sends two
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _say(message: object) -> None:
    if os.environ.get("MIXQUANT_DEBUG") == "1":
        traceback.print_exc()
    line = " ".join(str(message).split())
    print(f"mixquant: {line}", file=sys.stderr)  # noqa: T201 - the command line's own voice
