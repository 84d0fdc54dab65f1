"""The command frame: one readable line and the right exit code, never a traceback."""

import asyncio
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import types
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from mixquant_agents.cli import app
from mixquant_agents.cli.arguments import output_file
from mixquant_agents.cli.output import result_console
from mixquant_agents.engine.vllm.progress import start_progress
from mixquant_agents.errors import (
    ConfigError,
    ContextOverflowError,
    EngineDeadError,
    MixQuantError,
    UnknownPolicyError,
)


def failing(error: BaseException) -> types.ModuleType:
    module = types.ModuleType("mixquant_agents.cli.failing")

    def command() -> None:
        raise error

    module.command = command  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownPolicyError("no policy preset 'x'"), 2),
        (ContextOverflowError(9000, 8192), 2),
        (EngineDeadError("the engine died"), 1),
        (MixQuantError("two\nlines"), 1),
        (FileNotFoundError(2, "No such file", "x.txt"), 1),
        (RuntimeError("a bug"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mixquant_agents.cli.failing", failing(error))
    monkeypatch.setattr(app, "COMMANDS", {"bench failing": "failing"})
    assert app.run(["bench", "failing"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mixquant: ")
    assert err.count("\n") == 1


def test_sigterm_unwinds_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, seen, before = types.ModuleType("mixquant_agents.cli.waiting"), [], signal.getsignal(signal.SIGTERM)

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # `timeout` sends two, and systemd one to each process
            await asyncio.sleep(0.01)
            seen.append("closed")

    def command() -> None:
        asyncio.run(work())

    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mixquant_agents.cli.waiting", module)
    monkeypatch.setattr(app, "COMMANDS", {"bench waiting": "waiting"})
    assert app.run(["bench", "waiting"]) == 143
    assert capsys.readouterr().err == "mixquant: terminated\n"
    assert seen == ["closed"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_usage_error_exits_2() -> None:
    assert app.run(["no-such-command"]) == 2
    assert app.run(["--no-such-option"]) == 2


def test_commands_have_help() -> None:
    for path in app.COMMANDS:
        assert app.run([*path.split(), "--help"]) == 0


def test_output_file_is_tried_before_the_work(tmp_path: Path) -> None:
    output_file("--out", None)
    output_file("--out", tmp_path / "new" / "report.json")
    assert list((tmp_path / "new").iterdir()) == []  # tried, not made
    (tmp_path / "old.json").write_text("{}")
    output_file("--out", tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "{}"
    (tmp_path / "turns.sqlite").write_bytes(b"SQLite format 3\0...")
    with pytest.raises(ConfigError, match="would be lost; name another file"):
        output_file("--out", tmp_path / "turns.sqlite")
    for path in (tmp_path, tmp_path / "old.json" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=r"--out .* cannot be written: .*; name another file"):
            output_file("--out", path)


@pytest.mark.parametrize(
    "line",
    [
        "chat --policy zzz hi",
        "chat --model '' hi",
        "demo --docs /no/such",
        "demo --tools nope",
        "demo --tools ''",
        "fidelity --prompts /no/such",
        "fidelity --policy zzz",
        "fidelity --recipe plain",
        "fidelity --agents 3 --policy uniform-nvfp4",
        "fidelity --agents 3 --recipe nope",
        "fidelity --agents 3 --out /dev/null/x",
        "report --store /no/such",
        "report --since 2026-01-31",
        "bench agents --suite nope",
        "bench agents --suite bundled:1 --out /dev/null/x",
        "bench peers --out /dev/null/x",
        "bench prefill --output /dev/null/x",
        "bench prefill --predict nope",
        "bench prefill --predict h100 --cases x",
        "bench replay --suite nope",
        "bench store --store /etc/passwd",
    ],
)
def test_impossible_command_is_refused_before_anything_starts(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(shlex.split(line)) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    (said,) = err.strip().splitlines()
    assert said.startswith("mixquant: ")
    assert "a bug" not in said


def test_prediction_is_written_to_the_output_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "predicted.json"
    assert app.run(["bench", "prefill", "--predict", "h100", "--json", "--output", str(file)]) == 0
    assert json.loads(file.read_text()) == json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_installed_command_answers() -> None:
    done = subprocess.run([sys.executable, "-m", "mixquant_agents", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("mixquant-agents ")


def test_console_prints_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("thread:key:[gpu]")
    table.add_row("a:key:b [bold]c")
    result_console().print(table)
    result_console().print("x:key:y [/z]")
    shown = capsys.readouterr().out
    assert all(said in shown for said in ("thread:key:[gpu]", "a:key:b [bold]c", "x:key:y [/z]"))


def test_model_name_like_markup_starts_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with start_progress("/models/[/old]") as progress:
        progress.enter("looking at it")
    assert progress.stage == "looking at it"


class Package:
    """An installed package that brings commands by entry point."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
        entries = [EntryPoint(name.replace("__", "."), value, app.GROUP) for name, value in commands.items()]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: entries if group == app.GROUP else [])


def greet() -> None:
    """Say hello."""
    print("hello")


def test_commands_of_other_packages_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "greeting", sys.modules[__name__])
    Package(monkeypatch, greet="greeting:greet", bench__hello="greeting:greet", own__hello="greeting:greet")
    for line in ("greet", "bench hello", "own hello"):
        assert app.run(line.split()) == 0
        assert capsys.readouterr().out == "hello\n"
    assert app.run(["bench", "--help"]) == 0
    listed = capsys.readouterr().out
    assert "Say hello." in listed
    assert "prefill" in listed, "what this package has itself is there, too"


def test_command_that_cannot_be_loaded_takes_no_other_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Package(monkeypatch, broken="no_such_module:command")
    assert app.run(["bench", "prefill", "--predict", "h100"]) == 0
    capsys.readouterr()
    assert app.run(["broken"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no_such_module" in line
    assert "reinstall or remove that package" in line
    assert app.run(["broken", "--suite", "bundled", "more"]) == 2, "whatever it is given"
    assert "no_such_module" in capsys.readouterr().err


def test_own_command_wins_over_another_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "greeting", sys.modules[__name__])
    Package(monkeypatch, doctor="greeting:greet")
    assert app.run(["doctor", "--help"]) == 0
    assert "Say hello." not in capsys.readouterr().out


def test_commands_of_the_workflows_are_registered() -> None:
    registered = {entry.name: entry.load() for entry in entry_points(group=app.GROUP)}
    assert {"demo", "bench.agents", "bench.peers", "bench.replay"} <= registered.keys()
    assert all(callable(command) for command in registered.values())
