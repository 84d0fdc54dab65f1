"""Answers are wrapped between words on a terminal, formats are told in words, and a command knows its own name."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mixquant_agents.cli.output import StreamedText, own_command, precision_line
from mixquant_agents.engine.base import EngineInfo


def streamed(pieces: list[str], width: int, *, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    text = StreamedText(console)
    for piece in pieces:
        text.feed(piece)
    text.end()
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_words_stay_whole() -> None:
    assert streamed(["The pre", "fill reads ", "the prompt.\nNext"], 12) == "The prefill\nreads the \nprompt.\nNext"


@given(st.text("abc \n", max_size=60), st.integers(10, 40), st.data())
def test_wrapping_loses_nothing_and_keeps_the_width(text: str, width: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    written = streamed([text[:cut], text[cut:]], width)
    assert "".join(written.split()) == "".join(text.split())
    longest = max(map(len, text.split()), default=0)
    assert all(len(line) <= max(width, longest) for line in written.split("\n"))
    assert written == streamed([text], width), "pieces make no difference"


@given(st.text("abc \n", max_size=60))
def test_pipe_gets_the_text_as_it_is(text: str) -> None:
    assert streamed([text], 10, terminal=False) == text


@pytest.mark.parametrize(
    ("policy", "formats", "emulated", "words"),
    [
        ("exact", ("exact", "exact"), None, "reads and writes exact"),
        (
            "mixquant",
            ("exact", "exact"),
            None,
            "reads and writes exact (no low-precision format is native on this device)",
        ),
        ("mixquant-fp8", ("fp8", "exact"), False, "reads in FP8, writes exact"),
        (
            "uniform-nvfp4",
            ("nvfp4", "nvfp4"),
            True,
            "reads in NVFP4, writes in NVFP4 (emulated here: shows the rounding, not the speed)",
        ),
        ("exact", (None, None), None, "reads in an unknown format, writes in an unknown format"),
    ],
)
def test_formats_are_told_in_words(
    policy: str, formats: tuple[str | None, str | None], emulated: bool | None, words: str
) -> None:
    prefill, decode = formats
    info = EngineInfo(
        engine="vllm", model="m", policy=policy, prefill_format=prefill, decode_format=decode, emulated=emulated
    )
    assert precision_line(info) == f"policy {policy}: {words}"


def test_own_command_is_one_that_can_be_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "mixquant"
    program.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert own_command() == "python -m mixquant_agents"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert own_command() == ".venv/bin/mixquant"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert own_command() == str(program)
    monkeypatch.setenv("PATH", str(program.parent))
    assert own_command() == "mixquant"
