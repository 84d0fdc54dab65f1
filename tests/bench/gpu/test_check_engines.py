"""Which engines are said to agree, on stand-ins for their processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.bench.gpu import check_engines
from mixquant_agents.bench.gpu.check_engines import ANSWER, GROUPS, LONG, SHORT, compared, main, unlike_pairs


class StandIn:
    """An engine whose answers follow from the prompt; ``offset`` moves its log probabilities, ``flip`` one answer."""

    def __init__(self, name: str, offset: float = 0.0, flip: int | None = None, fails: bool = False) -> None:
        self.name, self.offset, self.flip, self.fails = name, offset, flip, fails
        self.accepted = 9
        self.asked: list[str] = []
        self.closed = False

    def wait_for(self, event: str) -> dict[str, Any]:
        if self.fails:
            raise RuntimeError("out of memory")
        return {"start_seconds": 1.0}

    def ask(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request["do"])
        if request["do"] == "greedy":
            answers = [[len(prompt) % 7 + n for n in range(ANSWER)] for prompt in request["prompts"]]
            for prompt, answer in zip(request["prompts"], answers, strict=True):
                if len(prompt) == self.flip:
                    answer[3] = -1
            return {"answers": answers, "margins": [[2.0] * ANSWER for _ in answers]}
        if request["do"] == "score":
            signs = [[self.offset * (-1) ** n for n in range(len(prompt) - 1)] for prompt in request["prompts"]]
            return {"logprobs": signs}
        return {"status": "fine", "drafts": {"accepted": self.accepted}}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, StandIn]:
    """The engines of a run, which a test may change before it."""
    made: dict[str, StandIn] = {}

    def start(groups: list[str], path: Path, logs: Path) -> dict[str, StandIn]:
        for group in groups:
            for name in GROUPS[group]:
                made.setdefault(name, StandIn(name, 0.0 if name.startswith("exact") else 0.3))
        return made

    monkeypatch.setattr(check_engines, "start", start)
    monkeypatch.setattr(check_engines, "random_model", lambda shape, folder: folder)
    return made


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 2000}))
    return str(folder)


def test_equal_engines_pass(engines: dict[str, StandIn], model: str, tmp_path: Path) -> None:
    assert main([model, str(tmp_path / "out.json"), "graphs", "reload"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["failed"] == {}
    assert all(row["same"] == ANSWER for pair in result["agree"].values() for row in pair.values())
    assert len(result["agree"]) == 10, "five pairs of the graphs, one reloaded, and those beside others"
    assert result["long_prompts"]["mixquant"]["exact"]["rms"] == pytest.approx(0.3)
    assert all(engine.closed for engine in engines.values())
    assert "reload" in engines["mixquant-reloaded"].asked


def test_clear_difference_fails_and_is_named(engines: dict[str, StandIn], model: str, tmp_path: Path) -> None:
    engines["mixquant"] = StandIn("mixquant", 0.3, flip=SHORT[1])
    assert main([model, str(tmp_path / "out.json"), "graphs"]) == 1
    failed = json.loads((tmp_path / "out.json").read_text())["failed"]
    assert failed["mixquant, as exact"] == [SHORT[1]]
    assert "mixquant-eager, as exact-eager" not in failed


def test_engine_that_reads_otherwise_fails(engines: dict[str, StandIn], model: str, tmp_path: Path) -> None:
    engines["mixquant-piecewise"] = StandIn("mixquant-piecewise", 0.9)
    assert main([model, str(tmp_path / "out.json"), "graphs"]) == 1
    failed = json.loads((tmp_path / "out.json").read_text())["failed"]
    assert failed["mixquant and mixquant-piecewise, long prompts"] == list(LONG)


def test_engines_that_read_in_chunks_are_held_against_their_own_exact_one(
    engines: dict[str, StandIn], model: str, tmp_path: Path
) -> None:
    engines["mixquant-chunked-full"] = StandIn("mixquant-chunked-full", 0.9)
    assert main([model, str(tmp_path / "out.json"), "small-steps"]) == 1
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["failed"] == {"mixquant-chunked and mixquant-chunked-full, long prompts": list(LONG)}
    assert len(result["agree"]) == 5, "two against exact, and all three beside others"


def test_engine_that_does_not_start_fails_alone(engines: dict[str, StandIn], model: str, tmp_path: Path) -> None:
    engines["mixquant-eager"] = StandIn("mixquant-eager", fails=True)
    assert main([model, str(tmp_path / "out.json"), "graphs"]) == 1
    result = json.loads((tmp_path / "out.json").read_text())
    assert "out of memory" in result["engines"]["mixquant-eager"]["error"]
    assert result["engines"]["mixquant"]["status"] == "fine"
    assert result["failed"] == {}


def test_engine_that_was_to_draft_and_did_not_fails(engines: dict[str, StandIn], model: str, tmp_path: Path) -> None:
    assert main([model, str(tmp_path / "drafted.json"), "nested-features"]) == 0
    assert "drafts" in engines["nested-draft"].asked
    engines.clear()
    engines["nested-draft"] = StandIn("nested-draft", 0.3)
    engines["nested-draft"].accepted = 0
    assert main([model, str(tmp_path / "out.json"), "nested-features"]) == 1
    result = json.loads((tmp_path / "out.json").read_text())
    assert "was to draft" in result["engines"]["nested-draft"]["error"]
    assert result["failed"] == {}


def test_tie_is_no_difference() -> None:
    mine = {5: ([1, 2, 3], [1.0, 1.0, 1.0])}
    close, clear = {5: ([1, 9, 3], [1.0, 0.1, 1.0])}, {5: ([1, 9, 3], [1.0, 0.5, 1.0])}
    assert compared(mine, close, (5,)) == {5: {"same": 1, "margin": 0.1}}
    assert check_engines.parted(compared(mine, close, (5,))) == []
    assert check_engines.parted(compared(mine, clear, (5,))) == [5]
    assert compared(mine, mine, (5,)) == {5: {"same": 3, "margin": None}}


@pytest.mark.parametrize("ranks", ["tp2", "ep2"])
def test_ranks_may_not_be_farther_from_exact_than_one_gpu(ranks: str) -> None:
    def read(two_gpus: float, exact_two: float = 0.01) -> dict[str, Any]:
        return {
            "mixquant": {"exact": {"rms": 0.4, "mean": 0.0}},
            f"exact-{ranks}": {
                f"mixquant-{ranks}": {"rms": two_gpus, "mean": 0.0},
                "exact": {"rms": exact_two, "mean": 0.0},
            },
        }

    assert unlike_pairs(read(0.41)) == []
    assert unlike_pairs(read(0.5)) == [f"mixquant-{ranks} and exact-{ranks}"]
    assert unlike_pairs(read(0.4, 0.3)) == [f"exact-{ranks} and exact"]


def test_unknown_group_and_model_are_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([model, str(tmp_path / "out.json"), "grafs"], "no group 'grafs'"),
        ([str(tmp_path / "nowhere"), str(tmp_path / "out.json")], "no model folder"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err


def test_every_engine_of_a_group_is_compared() -> None:
    names = {name for group in GROUPS.values() for name in group}
    compared_names = {*check_engines.PAIRS, *check_engines.PAIRS.values()}
    assert names <= compared_names
