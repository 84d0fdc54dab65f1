"""Task scores of agent suites in a study's result file."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest

from mixquant_agents.bench.fidelity.tasks import main, read, rows_quantized, scores_of, task_scores, won_back
from mixquant_agents.errors import ConfigError


def rows(policy: str, scores: list[float], suite: str = "bundled") -> list[dict[str, object]]:
    return [{"suite": suite, "policy": policy, "case": f"c{n}", "score": score} for n, score in enumerate(scores)]


def written(path: pathlib.Path, made: list[dict[str, object]], *, zipped: bool = False) -> pathlib.Path:
    text = "\n".join([json.dumps({"run": {}}), *map(json.dumps, made), '{"suite": "cut'])
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


def test_loss_won_back_is_pooled_over_cases_that_all_ran(tmp_path: pathlib.Path) -> None:
    exact, worst, own = [1.0] * 10, [0.0] * 10, [1.0] * 8 + [0.0] * 2
    first = written(tmp_path / "a.jsonl", rows("exact", exact) + rows("uniform-nvfp4", worst))
    second = written(
        tmp_path / "b.jsonl.gz", rows("mixquant-nvfp4", own) + rows("mixquant-nvfp4", [1.0], "alone"), zipped=True
    )
    scores = scores_of(read([first, second]))
    found = won_back(scores)["mixquant-nvfp4"]
    assert (found["share"], found["n"]) == (pytest.approx(0.8), 10)
    low, high = found["ci95"]
    assert 0.4 <= low < 0.8 < high <= 1
    tasks = task_scores(scores)
    assert tasks["bundled"]["exact"] == {"score": 1.0, "n": 10}
    assert tasks["bundled"]["mixquant-nvfp4"]["delta"] == pytest.approx(-0.2)
    assert "delta_ci95" not in tasks["alone"]["mixquant-nvfp4"]


def test_nothing_to_win_back_is_no_number() -> None:
    same = {"s": {name: {"c": 1.0} for name in ("exact", "uniform-nvfp4", "mine")}}
    assert won_back(same)["mine"] == {"share": None, "ci95": None, "n": 1}


def test_share_of_quantized_rows_is_over_all_turns_that_were_counted(tmp_path: pathlib.Path) -> None:
    made = rows("mine", [1.0, 1.0, 1.0])
    made[0]["turns"] = [
        {"quantized_tokens": 30, "prefill_tokens": 100},
        {"quantized_tokens": 0, "prefill_tokens": 100},
        {"quantized_tokens": None, "prefill_tokens": None},
    ]
    shares = rows_quantized(read([written(tmp_path / "a.jsonl", made + rows("server", [1.0]))]))
    assert shares == {"bundled": {"mine": pytest.approx(0.15)}}


def test_result_file_gets_them(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "fidelity.json"
    file.write_text('{"model": "m"}')
    made = rows("exact", [1.0, 1.0]) + rows("uniform-nvfp4", [0.0, 1.0]) + rows("mine", [1.0, 1.0])
    main([str(file), str(written(tmp_path / "r.jsonl", made)), "--command", "bench"])
    report = json.loads(file.read_text())
    assert report["model"] == "m"
    assert report["pooled_loss_won_back"]["mine"]["share"] == 1.0
    assert report["tasks_command"] == "bench"
    assert "rows_quantized" not in report["tasks"]["bundled"]["mine"]  # their turns were not counted
    with pytest.raises(ConfigError, match="no results of tasks"):
        read([file])
