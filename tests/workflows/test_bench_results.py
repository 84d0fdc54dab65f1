"""Results on disk survive kills; their statistics are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.results import ResultFile
from mixquant_workflows.runner.stats import bootstrap, percentile


def test_a_results_file_is_only_added_to(tmp_path: Path) -> None:
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


def test_a_results_file_whose_first_line_was_cut_is_begun_anew(tmp_path: Path) -> None:
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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean(values: list[float]) -> None:
    low, high = bootstrap(values, resamples=200) or (1.0, 0.0)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap(values, resamples=200) == (low, high)


def test_small_statistics() -> None:
    assert bootstrap([]) is None
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    low, high = bootstrap([0.0] * 50 + [1.0] * 50) or (0, 0)
    assert 0.35 < low < 0.45
    assert 0.55 < high < 0.65
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([], 0.5) is None
    assert percentile(range(1, 21), 0.95) == 19


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 1.0]))
def test_percentiles_are_numpys(values: list[int], share: float) -> None:
    assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")
