"""τ²-bench: an agent, a user who is a script or a model, and the official evaluator."""

from __future__ import annotations

from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.errors import MixQuantError
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.base import Suite
from mixquant_workflows.suites.tau2.suite import Tau2


@pytest.mark.parametrize(
    "chosen",
    [
        Tau2("mock"),
    ],
    ids=lambda chosen: f"{chosen.name}-{'-'.join(getattr(chosen, 'categories', ()))}",
)
async def test_ground_truth_passes(chosen: Suite) -> None:
    result = await replay(chosen, limit=4)
    assert result["passed"] == result["total"] == 4
    assert not result["undocumented_misses"]


def model_of(*answers: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(answers)))


@pytest.mark.slow
async def test_idle_agent_scores_nothing() -> None:
    for chosen in (Tau2("mock"),):
        case = chosen.cases()[0]
        verdict = await chosen.run(case, model_of(*["I cannot do that."] * 30))
        assert verdict.score == 0, chosen.name
        assert verdict.why


async def test_model_plays_the_user() -> None:
    """Both sides talk: the user under the benchmark's own instructions, the agent under its policy."""
    chosen = Tau2("mock", "model")
    case = next(case for case in chosen.cases() if case.id == "create_task_1")

    def speak(request: EngineRequest) -> Any:
        turns = [message["role"] for message in request.messages]
        if "<scenario>" in request.messages[0]["content"]:
            return "Please create the task for me." if turns.count("user") == 1 else "Thanks. ###STOP###"
        if turns[-1] == "tool":
            return "Your task is created."
        return Tau2("mock").oracle(case)[0]

    model = MixQuantChatModel(engine=ScriptedEngine(speak))
    verdict = await chosen.run(case, model)
    assert verdict.score == 1, verdict.why
    assert [message.type for message in verdict.messages] == ["ai", "human", "ai", "tool", "ai"]
    with pytest.raises(MixQuantError, match="its user is a model"):
        chosen.oracle(case)


@pytest.mark.slow
async def test_user_acts_on_its_own_devices() -> None:
    result = await replay(Tau2("telecom_small"), limit=3)  # user alone, agent alone, both
    assert result["passed"] == 3
