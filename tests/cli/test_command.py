"""Help that can be read at 80 columns, options by their earlier names, and settings of the engine by name."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import pytest

from mixquant_agents.cli import app
from mixquant_agents.cli.arguments import comma_list, comma_lists, engine_settings, positive_numbers
from mixquant_agents.cli.command import OLD_NAMES, _renamed
from mixquant_agents.config import EngineConfig
from mixquant_agents.errors import ConfigError

LINES = [*app.COMMANDS, *(entry.name.replace(".", " ") for entry in entry_points(group=app.GROUP))]


def help_of(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run([*line.split(), "-h"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("line", LINES)
def test_help_fits_and_has_an_example(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = help_of(line, monkeypatch, capsys)
    assert max(map(len, lines)) <= 80
    assert any(text.strip().startswith(f"Example: mixquant {line}") for text in lines)
    options = lines[lines.index("Options:") + 1 :]
    text = " ".join(lines)
    assert not re.search(r"<\w+(\[\w+\])?( range)?>|\[\[", text), "a value is named by a word, not by its type"
    # What an option does starts in the first half of the line, so that it is read as a sentence.
    begins = [len(row) - len(row.lstrip()) for row in options if row.startswith("          ")]
    assert not begins or max(begins) <= 40


def test_list_of_commands_shows_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ("", "bench"):
        shown = help_of(line, monkeypatch, capsys)
        assert not [row for row in shown if row.endswith("...") and not row.startswith("Usage:")]


def test_example_of_each_command_names_options_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in LINES:
        shown = help_of(line, monkeypatch, capsys)
        (example,) = (row for row in shown if row.strip().startswith("Example: "))
        options = " ".join(shown[shown.index("Options:") :])
        for word in re.findall(r"--[a-z-]+", example):
            assert word in options, (line, word)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_name_is_understood_where_the_new_one_exists(old: str) -> None:
    assert _renamed([old, "x", f"{old}=y", "--", old], OLD_NAMES) == [
        OLD_NAMES[old],
        "x",
        f"{OLD_NAMES[old]}=y",
        "--",
        old,
    ]


def test_old_names_reach_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "agents", "--suite", "bundled", "--policies", "exact,nope", "--n", "3"]) == 2
    assert "no policy preset 'nope'" in capsys.readouterr().err
    assert app.run(["bench", "agents", "--suite", "bundled", "--n", "0"]) == 2
    assert "--limit" in capsys.readouterr().err
    assert app.run(["doctor", "--out", "x"]) == 2  # no command takes an option only because another one has it
    assert "--out" in capsys.readouterr().err


def test_completion_is_offered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MIXQUANT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mixquant do")
    monkeypatch.setenv("COMP_CWORD", "1")
    app.run([])
    assert "doctor" in capsys.readouterr().out


def test_repeated_and_comma_lists_are_one() -> None:
    assert comma_lists(["a,b", " c", "a"]) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["1,,2", ",1", "1,", " , "])
def test_empty_part_of_a_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="empty part"):
        comma_lists(["a,b", text])
    with pytest.raises(ConfigError, match="--agents"):
        positive_numbers("--agents", text, "1,2")


def test_list_without_parts_is_empty() -> None:
    assert comma_list("") == comma_list(" ") == []


def test_engine_settings_are_read_as_json_or_text() -> None:
    texts = ["enforce-eager=true", "gpu_memory_utilization=0.3", "dtype=float32", 'vllm_args={"swap_space": 1}']
    settings = engine_settings(texts)
    assert settings == {
        "enforce_eager": True,
        "gpu_memory_utilization": 0.3,
        "dtype": "float32",
        "vllm_args": {"swap_space": 1},
    }
    assert EngineConfig(model="m", **settings).enforce_eager is True
    for wrong in ("enforce_eager", "nope=1", "model=x"):
        with pytest.raises(ConfigError, match=r"NAME one of capture_sizes, .*, vllm_args"):
            engine_settings([wrong])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("chat --policy exat hi", "did you mean 'exact'?"),
        ("serve --routing psychic", "choose one of cache_aware"),
        ("serve --hosts elsewhere", "give addresses such as http://"),
        ("calibrate /no/such", "model folder '/no/such' does not exist"),
        ("calibrate some/model", "add --output FOLDER"),
        ("plan --itl-ms inf", "--itl-ms': inf is no finite number"),
        ("plan --seconds inf", "Invalid value for '--seconds'"),
        ("plan --spare nan", "--spare"),
        ("bench plan --kv-gib 1e999", "--kv-gib': inf is no finite number"),
        ("bench agents --suite bundled --calls psychic", "'psychic' is not one of 'auto'"),
    ],
)
def test_wrong_value_is_refused_before_anything_starts(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(line.split()) != 0
    shown = capsys.readouterr().err
    assert words in " ".join(shown.split())
    assert "Value error" not in shown
    assert "starting" not in shown.lower()
