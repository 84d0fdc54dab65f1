"""Messages are read from a pipe line by line, and typed with a history that is nobody else's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from mixquant_agents.cli.chat import lines
from mixquant_agents.errors import RequestError


def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    with pytest.raises(RequestError, match="give UTF-8"):
        next(lines.read_lines())


def test_messages_are_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\n  b  \n"))
    assert list(lines.read_lines()) == ["a", "b"]


def typed(keys: str) -> list[str]:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        return list(lines.typed_lines(Console(file=io.StringIO())))


def test_typed_lines_are_edited_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    history = tmp_path / "state" / "chat_history"
    monkeypatch.setattr(lines, "history_path", lambda: history)
    end, left, up, interrupt, new_line = "\x04", "\x1b[D", "\x1b[A", "\x03", "\x1b\r"
    keys = f"helo{left}l\r" + f"two{new_line}lines\r" + f"lost{interrupt}" + "\r" + end
    assert typed(keys) == ["hello", "two\nlines"]
    assert typed(f"{up}{up}{up}\r{end}") == ["hello"]
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700


def test_history_that_cannot_be_kept_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(lines, "history_path", lambda: tmp_path / "file" / "chat_history")
    notes = Console(file=io.StringIO(), width=300)
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("hi\r\x04")
        assert list(lines.typed_lines(notes)) == ["hi"]
    assert "no history is kept" in notes.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
