"""What was measured, kept in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixquant_agents.bench.prefill.plan import CASES
from mixquant_agents.bench.prefill.state import State
from mixquant_agents.errors import ConfigError


def test_state_survives_and_is_continued(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", info={"model": "m"})
    run = state.run_of(["exact"], CASES[:1])
    run.rounds.append({"cold_64": {"exact": [1.0]}})
    state.save()
    again = State.load(tmp_path / "state.json")
    assert (again.runs, again.info) == (state.runs, state.info)
    assert again.run_of(["exact"], CASES[:1]).rounds == run.rounds
    assert again.run_of(["exact"], CASES[:2]).rounds == []
    assert State.load(tmp_path / "none.json").runs == []


def test_agents_of_another_length_are_refused(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.agents_of(4.0)
    with pytest.raises(ConfigError, match=r"runs of 4 s, not 9; give another --state"):
        state.agents_of(9.0)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"runs": 3}', '{"runs": [{"x": 1}], "info": {}}', '{"runs": [], "info": 1}']
)
def test_file_that_holds_no_state_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="--state"):
        State.load(path)
