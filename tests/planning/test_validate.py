"""The committed comparison of the plan with an H200: today's simulation makes its predictions, which are as near as
docs/serving.md says."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.cli.app import run
from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.report import Question, answer

RESULT = Path(__file__).parents[2] / "docs/results/plan.json"
AT_A_CLIFF = {(8, "itl_p95_ms"), (16, "itl_p95_ms")}
"""What is beyond 15 %: gaps that are long or short, of which about one in twenty is long."""


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text())
    return result


def test_committed_prediction_is_today_s(committed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "plan", "--again", str(RESULT), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["gpu"]["policies"]["exact"]
    for run_again, run_before in zip(again["runs"], committed["gpu"]["policies"]["exact"]["runs"], strict=True):
        assert run_again["measured"] == run_before["measured"]
        assert run_again["predicted"] == pytest.approx(run_before["predicted"], rel=0.01)


def test_committed_prediction_is_as_near_as_the_docs_say(committed: dict[str, Any]) -> None:
    runs = committed["gpu"]["policies"]["exact"]["runs"]
    errors = {(run["agents"], name): error for run in runs for name, error in run["error"].items()}
    before = {
        (run["agents"], name): error
        for run in committed["gpu"]["errors_before"]["runs"]
        for name, error in run["error"].items()
    }
    assert errors.keys() == before.keys()
    assert {figure for figure, error in errors.items() if abs(error) > 0.15} == AT_A_CLIFF
    assert all(abs(error) < 0.06 for (_, name), error in errors.items() if "ttft" in name)
    tails = [figure for figure in errors if "p95" in figure[1]]
    assert sum(abs(errors[figure]) for figure in tails) < 0.8 * sum(abs(before[figure]) for figure in tails)


def test_plan_takes_the_committed_file() -> None:
    question = Question(agents=(8,), model="m", gpu="none", steps=RESULT, seconds=60, max_context=40_960)
    (plan,) = answer(question)["plans"]
    assert plan["engines"]


def test_file_of_two_devices_is_ambiguous(committed: dict[str, Any], tmp_path: Path) -> None:
    both = tmp_path / "both.json"
    both.write_text(json.dumps({**committed, "cpu": committed["gpu"]}))
    with pytest.raises(ConfigError, match="holds 'exact' of gpu, cpu; give a file of one device"):
        answer(Question(agents=(8,), model="m", gpu="none", policies=("exact",), steps=both))
