"""Reasoning Gym: right answers pass its own scorers, wrong ones fail, and noise is other people's exercises."""

from __future__ import annotations

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.reasoning_gym import ARITHMETIC, ReasoningGym


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reasoning_gym_arithmetic", "reasoning_gym_copying"])
async def test_ground_truth_passes(name: str) -> None:
    result = await replay(suite(name))
    assert result["passed"] == result["total"] == 150


async def test_noise_comes_before_the_task_and_is_the_same_in_every_run() -> None:
    noisy, plain = ReasoningGym("noisy", ARITHMETIC, 3_000), ReasoningGym("plain", ARITHMETIC)
    prompts = []
    for chosen in (noisy, noisy, plain):
        engine = ScriptedEngine(["<answer>nothing</answer>"])
        verdict = await chosen.run(chosen.cases()[30], MixQuantChatModel(engine=engine))
        assert verdict.score == 0.0
        prompts.append(str(engine.requests[0].messages[0]["content"]))
    assert prompts[0] == prompts[1]
    assert prompts[0].endswith(prompts[2])
    assert 3_000 < len(prompts[0]) - len(prompts[2]) < 5_000
    assert prompts[0].count("Their answer was:") > 5


async def test_answer_without_its_marks_is_none() -> None:
    chosen = suite("reasoning_gym_arithmetic")
    verdict = await chosen.run(chosen.cases()[0], MixQuantChatModel(engine=ScriptedEngine(["It is 4."])))
    assert verdict.score == 0.0
    assert "got None" in verdict.why
