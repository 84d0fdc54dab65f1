"""Where nobody watches a spinner, a start still says what it does, every few seconds."""

from __future__ import annotations

import io
import pathlib
import threading
import time

import pytest

from mixquant_agents import VllmEngine
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm import progress as progress_module
from mixquant_agents.engine.vllm.progress import start_progress
from mixquant_agents.errors import ModelNotFoundError


def test_stages_and_seconds_are_lines_outside_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "HEARTBEAT_SECONDS", 0.02)
    threads = threading.active_count()
    with start_progress("m") as progress:
        progress.enter("importing vLLM")
        progress.enter("loading weights")
        text, deadline = "", time.monotonic() + 20
        while text.count("loading weights") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            text += capsys.readouterr().err
    assert threading.active_count() == threads, "the heartbeat ends with the start"
    lines = (text + capsys.readouterr().err).splitlines()
    assert lines[0] == "Starting the engine for m"
    assert "s  importing vLLM" in lines[1]
    assert sum("loading weights" in line for line in lines) >= 3
    assert lines[-1].startswith("Engine ready after ")


def test_failed_start_ends_the_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress_module, "HEARTBEAT_SECONDS", 0.01)
    with pytest.raises(ValueError, match="x"), start_progress("m"):
        raise ValueError("x")
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_missing_standard_error_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with start_progress("m") as progress:
        progress.enter("importing vLLM")


async def test_wrong_folder_is_told_before_a_start_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    with pytest.raises(ModelNotFoundError, match="'/nope' does not exist"):
        await VllmEngine(EngineConfig(model="/nope")).start()
    assert "Starting" not in said.getvalue()


def test_calibration_in_the_engines_process_is_shown(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "engine.log"
    log.write_text("started\n(Worker) WARNING mixquant: calibrating: rounding weights, 60 %\n")
    with start_progress("m", str(log)) as progress:
        progress.enter("starting")
        log.write_text(log.read_text() + "weights loaded\n")
        progress.enter("starting")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].endswith("starting (calibrating: rounding weights, 60 %)")
    assert lines[2].endswith("starting")
