"""The suite of this project's own tools."""

from __future__ import annotations

from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.base import Suite
from mixquant_workflows.suites.bundled.suite import BundledTools, holds


@pytest.mark.parametrize(
    "chosen",
    [
        BundledTools(),
    ],
    ids=lambda chosen: f"{chosen.name}-{'-'.join(getattr(chosen, 'categories', ()))}",
)
async def test_ground_truth_passes(chosen: Suite) -> None:
    result = await replay(chosen, limit=4)
    assert result["passed"] == result["total"] == 4
    assert not result["undocumented_misses"]


def model_of(*answers: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(answers)))


def test_bundled_suite_has_sixty_tasks() -> None:
    cases = BundledTools().cases()
    assert len(cases) == len({case.id for case in cases}) == 60
    turns = [sum(len(turn.calls) + 1 for turn in case.data["task"].turns) for case in cases]
    assert min(turns) >= 2
    assert max(turns) <= 6


@pytest.mark.slow
async def test_idle_agent_scores_nothing() -> None:
    for chosen in (BundledTools(),):
        case = chosen.cases()[0]
        verdict = await chosen.run(case, model_of(*["I cannot do that."] * 30))
        assert verdict.score == 0, chosen.name
        assert verdict.why


async def test_guess_without_tools_scores_nothing() -> None:
    bundled = BundledTools()
    case = bundled.cases()[0]
    assert "no tool" in (await bundled.run(case, model_of("It is 1591."))).why


def test_values_are_compared_as_values() -> None:
    assert holds("That is 1,591 in all.", "1591")
    assert holds("It is 3.6576 meters", "3.65")
    assert holds("The answer is 42.", "42")
    assert holds("42.0", "42")
    assert not holds("It is 15910.", "1591")
    assert not holds("It is 42.5", "42")
    assert not holds("2026-03-27 10:27", "27")
    assert holds("on TUESDAY", "Tuesday")
