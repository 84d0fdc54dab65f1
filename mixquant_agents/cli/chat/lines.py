"""Where the messages of ``mixquant chat`` come from: typed on a terminal, or read from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_state_path
from rich.console import Console

from mixquant_agents.errors import RequestError

__all__ = ["history_path", "read_lines", "typed_lines"]


def history_path() -> Path:
    """Where typed messages are kept: ``chat_history`` in the user's state folder (``~/.local/state/mixquant``)."""
    return user_state_path("mixquant", appauthor=False) / "chat_history"


def read_lines() -> Iterator[str]:
    """The messages on standard input, one a line, until it ends; empty lines are left out.

    Raises:
        RequestError: it is no UTF-8 text.
    """
    while True:
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise RequestError(f"what was read is no text ({error}); give UTF-8") from error
        if not line:
            return
        if line.strip():
            yield line.strip()


def typed_lines(notes: Console) -> Iterator[str]:
    """The messages somebody types, with line editing, completion of commands and a history; ends at Ctrl-D.

    Alt-Enter begins a new line within a message. Ctrl-C empties the line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    from mixquant_agents.cli.chat.slash import COMMANDS

    path = history_path()
    history: History = InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what somebody types is theirs
        history = FileHistory(str(path))
    except OSError as error:
        notes.print(f"no history is kept: {path}: {error.strerror}", style="yellow", soft_wrap=True)
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: object) -> None:
        event.current_buffer.insert_text("\n")  # type: ignore[attr-defined]  # prompt_toolkit's KeyPressEvent

    session: PromptSession[str] = PromptSession(
        history=history,
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        prompt_continuation="...> ",
    )
    while True:
        try:
            line = session.prompt("you> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line.strip():
            yield line.strip()
