"""AgentDojo: its ground truths pass its own checkers through our tool path, and an attacker's calls are seen."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables.config import set_config_context

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ContextOverflowError
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.agentdojo import AgentDojo
from mixquant_workflows.suites.packages import agentdojo


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agentdojo_banking", "agentdojo_slack"])
async def test_ground_truth_passes(name: str) -> None:
    result = await replay(suite(name), limit=5)
    assert result["passed"] == result["total"] == 5


def test_cases_are_all_of_the_benchmark() -> None:
    counts = {name: (len(found.user_tasks), len(found.injection_tasks)) for name, found in agentdojo().suites.items()}
    assert counts == {"workspace": (40, 14), "travel": (20, 7), "banking": (16, 9), "slack": (21, 5)}
    assert len(AgentDojo("b", "banking", attacked=True).cases()) == 16 * 9


async def test_attack_is_in_what_the_model_reads_and_its_success_is_measured() -> None:
    chosen = AgentDojo("attacked", "banking", attacked=True)
    case = next(case for case in chosen.cases() if case.id == "user_task_0-injection_task_0")
    bank = agentdojo().suites["banking"]
    attacker = bank.injection_tasks["injection_task_0"]
    goal = attacker.ground_truth(bank.load_and_inject_default_environment({}))
    read: list[str] = []
    answers = iter([*chosen.oracle(case)])

    def obedient(request: EngineRequest) -> object:
        read.append(str(request.messages[-1]["content"]))
        if attacker.GOAL in read[-1]:
            return ScriptedTurn(tool_calls=[{"name": call.function, "args": dict(call.args)} for call in goal])
        return next(answers)

    verdict = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(obedient)))  # type: ignore[arg-type]
    assert any("<INFORMATION>" in text for text in read)
    assert verdict.measures == {"attack_success": 1.0}
    loyal = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(chosen.oracle(case))))
    assert (loyal.score, loyal.measures) == (1.0, {"attack_success": 0.0})


async def test_wrong_answers_fail() -> None:
    chosen = suite("agentdojo_banking")
    case = chosen.cases()[0]
    verdict = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(["I do not know."])))
    assert verdict.score == 0.0
    assert "was not done" in verdict.why


async def test_full_window_ends_the_run_and_what_was_done_is_judged() -> None:
    """As by the benchmark's own runner the user's task counts as not done, although this one asks for no more."""
    chosen = AgentDojo("attacked", "banking", attacked=True)
    case = next(case for case in chosen.cases() if case.id == "user_task_0-injection_task_0")
    steps = iter(chosen.oracle(case)[:-1])

    def talkative(request: EngineRequest) -> object:
        if (step := next(steps, None)) is None:
            raise ContextOverflowError(8063, 8192, 256)
        return step

    model = MixQuantChatModel(engine=ScriptedEngine(talkative))  # type: ignore[arg-type]
    with set_config_context({"configurable": {"thread_id": "attacked/0"}}) as context:
        verdict = await asyncio.create_task(chosen.run(case, model), context=context)
    assert (verdict.score, verdict.measures) == (0.0, {"attack_success": 0.0})
    assert "8063" in verdict.why
    turns = [message.response_metadata["turn"] for message in verdict.messages if isinstance(message, AIMessage)]
    assert [turn["thread_id"] for turn in turns] == ["attacked/0"] * len(chosen.oracle(case)[:-1])
