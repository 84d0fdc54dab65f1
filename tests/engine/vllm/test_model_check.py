"""The case list of ``mixquant doctor --model``: families × cases, on short templates in their manner."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.cli import app
from mixquant_agents.engine.vllm.args import free_port
from mixquant_agents.engine.vllm.chat_format.shape import _OPTIONS, Shape
from mixquant_agents.engine.vllm.model_check import _ADAPTATIONS, CASES, check_template
from mixquant_agents.errors import ConfigError
from tests.engine.vllm.chat_format.families import FAMILIES


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    reports: dict[str, dict[str, Any]] = {}

    def report(family: str) -> dict[str, Any]:
        if family not in reports:
            path = tmp_path_factory.mktemp("templates") / "template.jinja"
            path.write_text(FAMILIES[family].template)
            reports[family] = check_template(path)
        return reports[family]

    return report


QUICK = {"Qwen 3", "Llama 3.1", "Mistral", "DeepSeek V3", "gpt-oss", "Phi 3"}
"""Families with little in common; a report of each takes a third of a second, so those of the others are slow."""
EVERY = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]


@pytest.mark.parametrize("case", [case.name for case in CASES])
@pytest.mark.parametrize("family", EVERY)
def test_every_case_holds_for_every_family(report_of: Any, family: str, case: str) -> None:
    row = next(row for row in report_of(family)["cases"] if row["case"] == case)
    assert not row["wrong"], row["detail"]
    assert row["prompt"] == ("adapted" if case in FAMILIES[family].adapted else "own"), row["detail"]
    assert row["answer"] in (None, "read")


@pytest.mark.parametrize("family", EVERY)
def test_parsers_are_found_by_the_template(report_of: Any, family: str) -> None:
    report = report_of(family)
    assert (report["tool_parser"], report["reasoning_parser"]) == FAMILIES[family].parsers
    assert report["problems"] == []


def test_quick_families_are_families() -> None:
    assert set(FAMILIES) > QUICK


def test_every_adaptation_has_its_words() -> None:
    standard = Shape()
    differing = {(name, value) for name, options in _OPTIONS.items() for value, _ in options}
    differing |= {("tools", form) for form in ("listed", "spoken", "prompted")}
    assert set(_ADAPTATIONS) == differing
    assert set(_OPTIONS) | {"tools"} == set(Shape.__slots__)
    assert not any(getattr(standard, name) == value for name, value in differing)


def test_the_command_says_what_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "phi.jinja"
    path.write_text(FAMILIES["Phi 3"].template)
    assert app.run(["doctor", "--chat-template", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "phi  calls read by hermes, thoughts by nobody" in shown
    assert "tools in words" in shown
    assert app.run(["doctor", "--chat-template", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tools"] == "prompted"


def test_what_does_not_hold_is_a_problem_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.jinja"
    path.write_text(FAMILIES["Qwen 2.5"].template.replace("<tool_call>", "CALL").replace("</tool_call>", "DONE"))
    assert app.run(["doctor", "--chat-template", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert any(problem.startswith("call and result: ") for problem in report["problems"])


def test_a_model_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app.run(["doctor", "--model", str(tmp_path / "gone")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_unknown_model_without_a_network_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub is asked once: transformers would ask it again and again for minutes."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    assert app.run(["doctor", "--model", "nobody/no-such-model"]) == 1
    assert time.monotonic() - began < 15
    error = capsys.readouterr().err
    assert "'nobody/no-such-model'" in error
    assert "give a local folder" in error


def test_a_models_folder_is_checked_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.engine.vllm.byte_tokenizer import byte_tokenizer

    byte_tokenizer(FAMILIES["Qwen 3"].template, ["<think>", "</think>", "<tool_call>"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert app.run(["doctor", "--model", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tool_parser"], report["reasoning_parser"]) == ("hermes", "qwen3")
    assert {case["prompt"] for case in report["cases"]} == {"own"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"a \xff {{ messages }}", "cannot be read: .*give a Jinja template in UTF-8"),
        (None, "is not a file; give the path of a Jinja template"),
    ],
)
def test_template_that_cannot_be_read_is_refused(tmp_path: Path, source: bytes | None, words: str) -> None:
    path = tmp_path / "template.jinja"
    if source is not None:
        path.write_bytes(source)
    with pytest.raises(ConfigError, match=words):
        check_template(path)


@pytest.mark.parametrize("source", ["{% if messages %}", "{{ raise_exception('never') }}"])
def test_template_that_renders_nothing_is_a_problem(tmp_path: Path, source: str) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(source)
    assert any("no conversation can be rendered" in problem for problem in check_template(path)["problems"])
    assert app.run(["doctor", "--chat-template", str(path)]) == 1
