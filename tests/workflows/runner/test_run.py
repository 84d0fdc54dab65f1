"""The runner scores, fails, goes on, and draws the same cases again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.errors import ContextOverflowError, TurnTimeoutError
from mixquant_workflows.runner.results import ResultFile, summarise
from mixquant_workflows.runner.run import choose, run_suites
from mixquant_workflows.suites.base import Case, Verdict


class Toy:
    """Scores what the model says."""

    name = "toy"
    one_answer = False
    documented_misses: dict[str, str] = {}  # noqa: RUF012 - a protocol's attribute
    ran: list[str]

    def __init__(self, own_timeout: Exception | None = None) -> None:
        self.ran, self.own_timeout = [], own_timeout

    def cases(self) -> list[Case]:
        return [Case(f"c{number}", {}) for number in range(6)]

    async def run(self, case: Case, model: Any) -> Verdict:
        self.ran.append(case.id)
        if case.id == "c3":
            raise ValueError("the checker tripped")
        if case.id == "c4":
            await asyncio.sleep(60)
        if case.id == "c5" and self.own_timeout is not None:
            raise self.own_timeout
        answer = await model.ainvoke(case.id)
        return Verdict(score=float(answer.text == "good"), messages=[answer], measures={"length": len(answer.text)})

    def oracle(self, case: Case) -> list[Any]:
        return ["good"]


async def play(toy: Toy, results: ResultFile, policies: tuple[str, ...] = ("exact", "mixquant-nvfp4-plain")) -> None:
    for policy in policies:
        say = "good" if policy == "exact" else "bad"
        model = MixQuantChatModel(engine=ScriptedEngine([say], cycle=True, policy=policy))
        await run_suites([toy], policy, model, results, concurrency=3, case_seconds=0.6)


@pytest.mark.slow
async def test_runner_scores_fails_and_goes_on(tmp_path: Path) -> None:
    path, header = tmp_path / "deep" / "r.jsonl", {"model": "toy"}
    toy = Toy()
    await play(toy, ResultFile(path, header), ("exact",))
    assert sorted(toy.ran) == ["c0", "c1", "c2", "c3", "c4", "c5"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:20]]))  # killed while writing
    kept = {json.loads(line)["case"] for line in lines[1:4]}
    again = Toy()
    results = ResultFile(path, header)
    await play(again, results)
    assert sorted(again.ran[:3]) == sorted({"c0", "c1", "c2", "c3", "c4", "c5"} - kept)
    figures = summarise(results.rows)["toy"]
    assert figures["exact"]["n"] == figures["mixquant-nvfp4-plain"]["n"] == 6
    assert figures["exact"]["errors"] == 2
    assert figures["exact"]["score"] == pytest.approx(4 / 6)
    assert figures["mixquant-nvfp4-plain"]["delta"] == pytest.approx(-4 / 6)
    low, high = figures["mixquant-nvfp4-plain"]["delta_ci95"]
    assert low <= -4 / 6 <= high
    assert figures["mixquant-nvfp4-plain"]["emulated"] is True
    turns = [turn for row in results.rows if row["policy"] == "mixquant-nvfp4-plain" for turn in row["turns"]]
    assert figures["mixquant-nvfp4-plain"]["quantized_tokens"] == sum(turn["quantized_tokens"] for turn in turns) > 0
    assert figures["exact"]["ttft_p50_ms"] > 0
    reasons = {row["case"]: row["error"] for row in results.rows if row.get("error")}
    assert "tripped" in reasons["c3"]
    assert "longer than 0.6 s" in reasons["c4"]


@pytest.mark.parametrize("error", [TimeoutError("the tool server is slow"), TurnTimeoutError("timeout=3 seconds")])
async def test_deadline_of_the_runner_is_told_from_others(error: Exception) -> None:
    results = ResultFile(None, {})
    await play(Toy(error), results, ("exact",))
    reasons = {row["case"]: row["error"] for row in results.rows if row.get("error")}
    assert reasons["c4"] == "took longer than 0.6 s"
    assert reasons["c5"] == f"{type(error).__name__}: {error}"


class Tripping(Toy):
    """Each task has one turn, and fails: one by its limit."""

    async def run(self, case: Case, model: Any) -> Verdict:
        await model.ainvoke(case.id)
        if case.id == "c4":
            await asyncio.sleep(60)
        raise ContextOverflowError(8063, 8192, 256)


async def test_turns_of_tasks_that_failed_are_counted() -> None:
    results = ResultFile(None, {})
    await play(Tripping(), results, ("exact",))
    assert [len(row["turns"]) for row in results.rows] == [1] * 6
    figures = summarise(results.rows)["toy"]["exact"]
    assert figures["errors"] == figures["turns"] == 6
    assert figures["decode_tokens"] == sum(row["turns"][0]["decode_tokens"] for row in results.rows) > 0
    assert {row["turns"][0]["thread_id"] for row in results.rows} == {f"toy/exact/c{number}" for number in range(6)}


def test_seed_draws_the_same_cases() -> None:
    cases = [Case(str(number), {}) for number in range(50)]
    assert choose(cases, 10, 1) == choose(cases, 10, 1) != choose(cases, 10, 2)
    assert choose(cases, None, 1) == choose(cases, 99, 1) == cases
