"""BFCL: its ground truths pass its own checkers, and wrong answers fail."""

from __future__ import annotations

from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.base import Suite
from mixquant_workflows.suites.bfcl.ast import BfclAst
from mixquant_workflows.suites.bfcl.memory import BfclMemory
from mixquant_workflows.suites.bfcl.turns import BfclTurns, call_text


@pytest.mark.parametrize(
    "chosen",
    [
        BfclAst("ast", ("simple_java",)),
        BfclAst("ast", ("parallel_multiple",)),
        BfclAst("ast", ("irrelevance",)),
        pytest.param(BfclTurns("turns", ("multi_turn_miss_func",)), marks=pytest.mark.slow),
    ],
    ids=lambda chosen: f"{chosen.name}-{'-'.join(getattr(chosen, 'categories', ()))}",
)
async def test_ground_truth_passes(chosen: Suite) -> None:
    result = await replay(chosen, limit=4)
    assert result["passed"] == result["total"] == 4
    assert not result["undocumented_misses"]


def model_of(*answers: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(answers)))


async def test_documented_misses_are_reported_apart() -> None:
    java = BfclAst("ast", ("simple_java",))
    cases = [case for case in java.cases() if case.id in ("simple_java_36", "simple_java_37")]
    java.cases = lambda: cases  # type: ignore[method-assign]
    result = await replay(java)
    assert (result["passed"], result["total"]) == (1, 2)
    assert list(result["documented_misses"]) == ["simple_java_36"]


@pytest.mark.slow
async def test_wrong_answers_score_nothing() -> None:
    ast = BfclAst("ast", ("simple_python",))
    case = ast.cases()[0]
    right = ast.oracle(case)[0]
    name = right.tool_calls[0]["name"]
    for wrong in (
        "I do not know.",
        ScriptedTurn(tool_calls=[{"name": name, "args": {}}]),
        ScriptedTurn(tool_calls=[{"name": "other", "args": right.tool_calls[0]["args"]}]),
        ScriptedTurn(tool_calls=[right.tool_calls[0]] * 2),
        ScriptedTurn(tool_calls=[{"name": name, "args": "{broken"}]),
    ):
        verdict = await ast.run(case, model_of(wrong))
        assert verdict.score == 0
        assert verdict.why
    none = BfclAst("ast", ("irrelevance",))
    case = none.cases()[0]
    called = ScriptedTurn(tool_calls=[{"name": case.data["tools"][0]["function"]["name"], "args": {}}])
    assert (await none.run(case, model_of(called))).score == 0


@pytest.mark.slow
async def test_idle_agent_scores_nothing() -> None:
    for chosen in (BfclTurns("turns", ("multi_turn_base",)),):
        case = chosen.cases()[0]
        verdict = await chosen.run(case, model_of(*["I cannot do that."] * 30))
        assert verdict.score == 0, chosen.name
        assert verdict.why


@pytest.mark.slow
async def test_memory_lasts_to_the_questions() -> None:
    """The agent writes a name down once; days later the question's prompt holds it. Another model starts with
    nothing."""
    chosen = BfclMemory("rec_sum")
    case = next(case for case in chosen.cases() if case.data["truth"] == ["Michael"])
    seen: list[str] = []

    def speak(request: EngineRequest) -> Any:
        seen.append(str(request.messages[0]["content"]))
        if request.messages[-1]["role"] == "user" and "Michael" in str(request.messages[-1]["content"]):
            return ScriptedTurn(tool_calls=[{"name": "memory_append", "args": {"text": "The name is Michael."}}])
        return "Michael" if "The name is Michael." in seen[-1] else "Noted."

    model = MixQuantChatModel(engine=ScriptedEngine(speak))
    assert (await chosen.run(case, model)).score == 1
    held = len(seen)
    assert held > 50
    assert "The name is Michael." not in seen[0]
    assert (await chosen.run(case, model)).score == 1
    assert len(seen) == held + 1  # the conversations are held once
    assert (await chosen.run(case, model_of(*["Who knows."] * 400))).score == 0


def test_call_text_is_never_code() -> None:
    assert call_text("mv", {"source": "a'b", "n": 1}) == 'mv(source="a\'b", n=1)'
    assert call_text("mv", {"x=__import__('os').system('id'), y": 1}) is None
    assert call_text("__import__('os').system", {}) is None
