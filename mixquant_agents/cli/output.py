"""What a command prints: results on stdout, everything else on stderr.

The consoles read no markup and no emoji codes: what is printed holds paths, names and answers, and ``[gpu]`` or
``:key:`` in one of them is meant.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console

from mixquant_agents.files import write_whole

if TYPE_CHECKING:
    from mixquant_agents.engine.base import EngineInfo

__all__ = [
    "StreamedText",
    "own_command",
    "precision_line",
    "print_json",
    "progress_bar",
    "progress_console",
    "result_console",
    "write_json",
    "write_whole",
]


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout; the only thing there when ``--json`` is given."""
    sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """The result as a file, as a whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    write_whole(path, json.dumps(result, indent=1) + "\n")


def result_console() -> Console:
    """For tables and answers: stdout."""
    return Console(highlight=False, markup=False, emoji=False)


def progress_console() -> Console:
    """For progress and notes: stderr."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr while something takes long; called with what is being done and the share done."""
    from rich.progress import Progress

    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def own_command() -> str:
    """How this command line is called from here: ``mixquant`` where the PATH has it, else its file, seen from the
    current folder."""
    installed = Path(sys.executable).with_name("mixquant")
    on_path = shutil.which("mixquant")
    if on_path is not None and Path(on_path).resolve() == installed.resolve():
        return "mixquant"
    if not installed.exists():
        return f"{Path(sys.executable).name} -m mixquant_agents"
    relative = os.path.relpath(installed)
    return str(installed) if relative.startswith("..") else relative


def precision_line(info: EngineInfo) -> str:
    """How an engine reads and writes, in words: ``"policy mixquant-fp8: reads in FP8, writes exact"``."""
    read = _format_words(info.prefill_format)
    write = _format_words(info.decode_format)
    if info.prefill_format == info.decode_format == "exact":
        words = "reads and writes exact"
        if info.policy != "exact":
            words += " (no low-precision format is native on this device)"
    else:
        words = f"reads {read}, writes {write}"
        if info.emulated:
            words += " (emulated here: shows the rounding, not the speed)"
        if info.storage == "nested":
            words += "; both weights in one storage"
    return f"policy {info.policy}: {words}"


def _format_words(name: str | None) -> str:
    return "in an unknown format" if name is None else "exact" if name == "exact" else f"in {name.upper()}"


class StreamedText:
    """Text that arrives in pieces: wrapped between words on a terminal, passed on as it is elsewhere.

    A word is shown when it has ended, since only then is it known whether the line has room for it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = console.width if console.is_terminal else None
        self._word = ""
        self._column = 0

    def feed(self, piece: str) -> None:
        """Show what can be shown of ``piece``."""
        if self._width is None:
            self._write(piece)
            return
        for character in piece:
            if not character.isspace():
                self._word += character
                continue
            self._end_word()
            if character == "\n" or self._column + 1 >= self._width:
                self._write("\n")
                self._column = 0
            else:
                self._write(" ")
                self._column += 1

    def end(self) -> None:
        """Show the rest."""
        self._end_word()

    def _end_word(self) -> None:
        if not self._word or self._width is None:
            return
        length = cell_len(self._word)
        if self._column and self._column + length > self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += length
        self._word = ""

    def _write(self, text: str) -> None:
        self._console.print(text, end="", soft_wrap=True)
