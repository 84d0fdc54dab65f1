"""The command frame: one readable line and the right exit code, never a traceback."""

import subprocess
import sys
import types

import pytest

from mixquant_agents.cli import app
from mixquant_agents.errors import ContextOverflowError, EngineDeadError, MixQuantError, UnknownPolicyError


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


def test_wrong_usage_exits_2() -> None:
    assert app.run(["no-such-command"]) == 2
    assert app.run(["--no-such-option"]) == 2


def test_every_listed_command_has_help() -> None:
    for path in app.COMMANDS:
        assert app.run([*path.split(), "--help"]) == 0


def test_the_installed_command_answers() -> None:
    done = subprocess.run([sys.executable, "-m", "mixquant_agents", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("mixquant-agents ")
