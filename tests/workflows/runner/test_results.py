"""Results on disk survive kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.results import ResultFile
from mixquant_workflows.runner.trace import read_trace


def test_results_file_is_only_added_to(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    row = {"suite": "toy", "policy": "exact"}
    ResultFile(path, {}).add({**row, "case": "whole"})
    for end in ('{"suite": "toy", "po', json.dumps({**row, "case": "last"})):  # cut; whole but for its newline
        with path.open("a") as file:
            file.write(end)
        before = path.read_text()
        again = ResultFile(path, {})
        assert path.read_text() == before  # a kill while it is read again costs nothing
        again.add({**row, "case": f"after {len(again.rows)}"})
        assert path.read_text().startswith(before)
        again = ResultFile(path, {})
    assert [one["case"] for one in again.rows] == ["whole", "after 1", "last", "after 3"]
    assert again.done("toy", "exact") == {"whole", "after 1", "last", "after 3"}


def test_results_file_with_a_cut_header_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    ResultFile(path, {"seed": 1})
    first = path.read_text()
    for cut in (0, 1, len(first) - 1):
        path.write_text(first[:cut])
        assert ResultFile(path, {"seed": 1}).rows == []
        assert path.read_text() == first


def test_results_of_another_run_are_refused(tmp_path: Path) -> None:
    ResultFile(tmp_path / "r.jsonl", {"seed": 1})
    with pytest.raises(ConfigError, match="another run"):
        ResultFile(tmp_path / "r.jsonl", {"seed": 2})
    (tmp_path / "text").write_text("no results\n")
    with pytest.raises(ConfigError, match="another run"):
        ResultFile(tmp_path / "text", {"seed": 1})
    assert (tmp_path / "text").read_text() == "no results\n"


@pytest.mark.parametrize("content", [b"\xff\x00\xfe\n", b"[" * 100_000])
def test_file_that_holds_no_results_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="results of another run"):
        ResultFile(path, {"model": "m"})
    with pytest.raises(ConfigError, match="is no file of results"):
        ResultFile.of(path)
    with pytest.raises(ConfigError, match="not JSON"):
        read_trace(path)
    assert path.read_bytes() == content
