"""The search for the number of engines."""

import itertools
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from mixquant_agents.cli.app import run
from mixquant_agents.cli.plan import _table
from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.capacity import Objectives, plan
from mixquant_agents.planning.report import Question, answer
from mixquant_agents.planning.simulate import EngineLimits, simulate
from mixquant_agents.planning.steps import MeasuredSteps
from mixquant_agents.planning.trace import BLOCK, rows
from mixquant_agents.planning.workload import Workload

STEPS = MeasuredSteps(source="test", prefill=((1, 0.05), (1001, 2.05)), decode=((1, 0.05), (101, 0.55)))
LIMITS = EngineLimits(kv_tokens=40_000)
WORK = Workload(
    turns=5, shared_tokens=1000, own_tokens=100, tool_tokens=200, answer_tokens=20, spread=0.3, max_context=4000,
    summary_tokens=100, tool_p86_seconds=0.5, tool_p95_seconds=1.0, ramp_seconds=2.0,
)  # fmt: skip
OBJECTIVES = Objectives(ttft_ms=3000, itl_ms=1500)
SHORT = {"seconds": 60.0, "warm_up": 10.0}


def test_engines_follow_from_the_most_agents_of_one() -> None:
    one = plan(WORK, STEPS, LIMITS, OBJECTIVES, agents=1000, kv_bytes_per_token=1024, gpus_per_engine=2, **SHORT)
    assert one.agents_per_engine > 1
    assert one.engines == -(-1000 // one.agents_per_engine)
    assert one.gpus == 2 * one.engines
    assert one.kv_gib == pytest.approx(one.engines * 40_000 / 2**20)
    assert OBJECTIVES.met(one.expected)
    more = simulate(WORK, STEPS, LIMITS, agents=2 * one.agents_per_engine, **SHORT).summary()
    assert not OBJECTIVES.met(more), "twice as many would not be served"


def test_spare_engines_are_added() -> None:
    plain, spare = (plan(WORK, STEPS, LIMITS, OBJECTIVES, agents=1000, spare=share, **SHORT) for share in (0, 0.5))
    assert spare.engines == pytest.approx(1.5 * plain.engines, abs=1)


def test_few_agents_need_one_engine() -> None:
    assert plan(WORK, STEPS, LIMITS, OBJECTIVES, agents=2, **SHORT).engines == 1


def test_objectives_that_no_engine_meets_are_told() -> None:
    none = plan(WORK, STEPS, LIMITS, Objectives(ttft_ms=1), agents=10, **SHORT)
    assert (none.agents_per_engine, none.engines, none.gpus) == (0, None, None)
    assert none.expected["ttft_p95_ms"] > 1


def test_trace_names_blocks_as_they_are_shared() -> None:
    work = WORK.model_copy(update={"shared_tokens": 2 * BLOCK, "max_context": 6000})
    outcome = simulate(work, STEPS, LIMITS, agents=3, seconds=1e4, turns_each=3)
    made = list(rows(outcome, work))
    assert len(made) == 9
    assert {tuple(row["hash_ids"][:2]) for row in made} == {(0, 1)}
    by_session: dict[str, list[list[int]]] = {}
    for row in made:
        assert len(row["hash_ids"]) == row["input_length"] // BLOCK
        by_session.setdefault(row["session_id"], []).append(row["hash_ids"])
    for prompts in by_session.values():
        for shorter, longer in itertools.pairwise(prompts):
            assert longer[: len(shorter)] == shorter
    own = [set(prompts[-1][2:]) for prompts in by_session.values()]
    assert not own[0] & own[1]
    assert [row["timestamp"] for row in made] == sorted(row["timestamp"] for row in made)
    assert sum("delay" in row for row in made) == 6


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    run = {"steps": STEPS.model_dump(mode="json")}
    path.write_text(json.dumps({"policies": {"exact": {"limits": LIMITS.model_dump(), "runs": [run]}}}))
    return path


def test_command_plans_from_measured_steps(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, trace = tmp_path / "work.json", tmp_path / "trace.jsonl"
    work.write_text(WORK.model_dump_json())
    words = ["plan", "--agents", "10,1000", "--policy", "exact", "--steps", str(measured), "--workload", str(work)]
    words += ["--ttft-ms", "3000", "--itl-ms", "1500", "--seconds", "20", "--trace", str(trace)]
    assert run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["agents"] for row in result["plans"]] == [10, 1000]
    assert result["plans"][1]["engines"] > result["plans"][0]["engines"] >= 1
    assert result["steps"] == {"exact": "test"}
    assert json.loads(trace.read_text().splitlines()[0])["session_id"]
    words[2] = "3"
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "Step times, exact: test." in shown.out
    assert re.search(r"exact: 1 agents an engine: p95 of TTFT [\d,]+ ms, of ITL \d+\.\d ms: fits", shown.err)


def test_table_is_whole_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"ttft_p50_ms": 253.4, "ttft_p95_ms": 12547.0, "itl_p50_ms": 27.44, "itl_p95_ms": 133.8,
               "tokens_per_s": 1324.1, "cached_share": 0.804}  # fmt: skip
    row = {"agents": 100_000, "policy": "mixquant-nvfp4-plain", "engines": 4321, "gpus": 8642, "agents_per_engine": 27,
           "kv_gib": 36_214.0, "expected": figures}  # fmt: skip
    none = {**row, "engines": None, "gpus": None, "agents_per_engine": 0, "kv_gib": None,
            "expected": dict.fromkeys(figures)}  # fmt: skip
    Console(width=80).print(_table([row, none]))
    shown = capsys.readouterr().out
    assert "…" not in shown
    for part in ("253 / 12,547", "27.4 / 133.8", "none do", "1,324", "36,214"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"policies": ("mixquant-fp8",)}, "holds no policy 'mixquant-fp8'"),
        ({"steps": Path("/no/such")}, "--steps /no/such cannot be read: No such file"),
        ({"steps": Path(__file__)}, f"--steps {__file__} is not JSON"),
        ({"workload": Path(__file__)}, "is not JSON"),
        (
            {"steps": None, "gpu": "h100"},
            "no tables for GPU 'h100'; it has (?!.*(manifest|versions|lane)).*h100_sxm, h200_sxm, l4",
        ),
        ({"workload": Path("/no/such")}, "cannot be read"),
        ({"max_context": 500}, "does not hold a beginning"),
        ({"kv_tokens": 1000}, "grows to .* tokens, and the KV cache of an engine .exact. holds 1,000"),
        ({"seconds": float("inf")}, "seconds = inf: give a finite number"),
        ({"itl_ms": float("nan")}, "itl_ms = nan: give a finite number"),
    ],
)
def test_wrong_question_is_refused(measured: Path, fields: dict[str, object], words: str) -> None:
    question = {"agents": (1,), "model": "m", "gpu": "h100_sxm", "policies": ("exact",), "steps": measured, **fields}
    with pytest.raises(ConfigError, match=words):
        answer(Question(**question))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [["--agents", "many"], ["--agents", "0"], ["--routing", "psychic"], ["--seconds", "inf"], ["--seconds", "nan"]],
)
def test_wrong_command_is_refused(words: list[str]) -> None:
    assert run(["plan", *words]) == 2
