"""The benchmark runner and its suites: ground truths pass, wrong answers fail, stopped runs go on."""

from __future__ import annotations

import asyncio
import collections
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.protocol import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError, MixQuantError, TurnTimeoutError
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.runner.results import ResultFile, summarise
from mixquant_workflows.runner.run import choose, run_suites
from mixquant_workflows.suites import heldout, packages
from mixquant_workflows.suites.base import Case, Suite, Verdict
from mixquant_workflows.suites.bfcl.ast import BfclAst
from mixquant_workflows.suites.bfcl.memory import BfclMemory
from mixquant_workflows.suites.bfcl.turns import BfclTurns, call_text
from mixquant_workflows.suites.bundled.suite import BundledTools, holds
from mixquant_workflows.suites.heldout import HeldOut
from mixquant_workflows.suites.tau2.suite import Tau2


def model_of(*answers: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(answers)))


# -- ground truths pass the tool path --


@pytest.mark.parametrize(
    "chosen",
    [
        BfclAst("ast", ("simple_java",)),
        BfclAst("ast", ("parallel_multiple",)),
        BfclAst("ast", ("irrelevance",)),
        BfclTurns("turns", ("multi_turn_miss_func",)),
        Tau2("mock"),
        BundledTools(),
        HeldOut("synthetic_multiple"),
        HeldOut("retry_after_error"),
        HeldOut("chat_with_tools"),
    ],
    ids=lambda chosen: f"{chosen.name}-{'-'.join(getattr(chosen, 'categories', ()))}",
)
async def test_ground_truth_passes(chosen: Suite) -> None:
    result = await replay(chosen, limit=4)
    assert result["passed"] == result["total"] == 4
    assert not result["undocumented_misses"]


@pytest.mark.parametrize("name", ["synthetic_single", "second_turn", "retry_after_error", "chat_with_tools", "chat"])
async def test_held_out_task_reaches_the_engine_whole(name: str) -> None:
    for case in HeldOut(name).cases()[:12]:
        task, engine = case.data["task"], ScriptedEngine(["Sure."])
        result = await HeldOut(name).run(case, MixQuantChatModel(engine=engine))
        (request,) = engine.requests
        assert [message["role"] for message in request.messages] == [message["role"] for message in task.messages]
        assert [message.get("content") for message in request.messages] == [m["content"] for m in task.messages]
        assert [tool.get("function", tool) for tool in request.tools] == task.tools
        assert result.score == (name.startswith("chat"))


def test_held_out_data_is_what_scores_are_quoted_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = collections.Counter(task.suite for task in heldout.load_tasks())
    assert counts == {name: 50 if name.startswith("chat") else 300 for name in heldout.SUITES}
    other = tmp_path / "heldout.jsonl.gz"
    monkeypatch.setattr(heldout, "DATA", other)
    with pytest.raises(MixQuantError, match="cannot be read"):
        heldout.load_tasks.__wrapped__()
    other.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(MixQuantError, match="scores would not compare"):
        heldout.load_tasks.__wrapped__()
    with pytest.raises(ConfigError, match="choose one of synthetic_single"):
        HeldOut("synthetic")


def test_refusal_is_read_from_the_first_sentence() -> None:
    assert heldout.refuses("I'm sorry, I don't have a function that can do that.")
    assert heldout.refuses("")
    assert not heldout.refuses("Paris is the capital. I can't say more.")


@pytest.mark.parametrize("name", heldout.SUITES)
def test_held_out_verdict_forgives_nothing(name: str) -> None:
    for case in HeldOut(name).cases()[:20]:
        task = case.data["task"]
        assert heldout.verdict(task, "Which one?", task.wanted, True, called=bool(task.wanted)) == (True, "")
        other = [{"name": "no_such", "arguments": {}}]
        assert not heldout.verdict(task, "", other, True, called=True)[0]
        if task.wanted:
            assert heldout.verdict(task, "", task.wanted, False, called=True) == (False, "invalid JSON")
            assert heldout.verdict(task, "All right.", [], True, called=False) == (False, "no call")
            assert heldout.verdict(task, "", task.wanted * 2, True, called=True) == (False, "wrong count")


async def test_documented_misses_are_reported_apart() -> None:
    java = BfclAst("ast", ("simple_java",))
    cases = [case for case in java.cases() if case.id in ("simple_java_36", "simple_java_37")]
    java.cases = lambda: cases  # type: ignore[method-assign]
    result = await replay(java)
    assert (result["passed"], result["total"]) == (1, 2)
    assert list(result["documented_misses"]) == ["simple_java_36"]


def test_the_bundled_suite_has_sixty_tasks() -> None:
    cases = BundledTools().cases()
    assert len(cases) == len({case.id for case in cases}) == 60
    turns = [sum(len(turn.calls) + 1 for turn in case.data["task"].turns) for case in cases]
    assert min(turns) >= 2
    assert max(turns) <= 6


# -- wrong answers fail the checkers --


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
async def test_idle_agents_score_nothing() -> None:
    for chosen in (BfclTurns("turns", ("multi_turn_base",)), BundledTools(), Tau2("mock")):
        case = chosen.cases()[0]
        verdict = await chosen.run(case, model_of(*["I cannot do that."] * 30))
        assert verdict.score == 0, chosen.name
        assert verdict.why


async def test_a_model_plays_the_user() -> None:
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
async def test_the_user_does_its_part_on_its_own_devices() -> None:
    result = await replay(Tau2("telecom_small"), limit=3)  # user alone, agent alone, both
    assert result["passed"] == 3


@pytest.mark.slow
async def test_memory_lasts_from_the_conversations_to_the_questions() -> None:
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


async def test_a_guess_without_tools_scores_nothing() -> None:
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


def test_a_models_words_never_become_code() -> None:
    assert call_text("mv", {"source": "a'b", "n": 1}) == 'mv(source="a\'b", n=1)'
    assert call_text("mv", {"x=__import__('os').system('id'), y": 1}) is None
    assert call_text("__import__('os').system", {}) is None


# -- the runner --


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


async def play(toy: Toy, results: ResultFile, policies: tuple[str, ...] = ("exact", "mixquant-nvfp4")) -> None:
    for policy in policies:
        say = "good" if policy == "exact" else "bad"
        model = MixQuantChatModel(engine=ScriptedEngine([say], cycle=True, policy=policy))
        await run_suites([toy], policy, model, results, concurrency=3, case_seconds=0.2)


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
    assert figures["exact"]["n"] == figures["mixquant-nvfp4"]["n"] == 6
    assert figures["exact"]["errors"] == 2
    assert figures["exact"]["score"] == pytest.approx(4 / 6)
    assert figures["mixquant-nvfp4"]["delta"] == pytest.approx(-4 / 6)
    low, high = figures["mixquant-nvfp4"]["delta_ci95"]
    assert low <= -4 / 6 <= high
    assert figures["mixquant-nvfp4"]["emulated"] is True
    turns = [turn for row in results.rows if row["policy"] == "mixquant-nvfp4" for turn in row["turns"]]
    assert figures["mixquant-nvfp4"]["quantized_tokens"] == sum(turn["quantized_tokens"] for turn in turns) > 0
    assert figures["exact"]["ttft_p50_ms"] > 0
    reasons = {row["case"]: row["error"] for row in results.rows if row.get("error")}
    assert "tripped" in reasons["c3"]
    assert "longer than 0.2 s" in reasons["c4"]


@pytest.mark.parametrize("error", [TimeoutError("the tool server is slow"), TurnTimeoutError("timeout=3 seconds")])
async def test_only_the_runners_own_deadline_is_told_as_that(error: Exception) -> None:
    results = ResultFile(None, {})
    await play(Toy(error), results, ("exact",))
    reasons = {row["case"]: row["error"] for row in results.rows if row.get("error")}
    assert reasons["c4"] == "took longer than 0.2 s"
    assert reasons["c5"] == f"{type(error).__name__}: {error}"


def test_same_seed_same_cases() -> None:
    cases = [Case(str(number), {}) for number in range(50)]
    assert choose(cases, 10, 1) == choose(cases, 10, 1) != choose(cases, 10, 2)
    assert choose(cases, None, 1) == choose(cases, 99, 1) == cases


# -- what is missing is told in words --


def test_unknown_suite() -> None:
    with pytest.raises(ConfigError, match="choose one of bundled"):
        suite("nonsense")


def test_missing_package_and_changed_data(tmp_path: Path) -> None:
    with pytest.raises(packages.MissingBenchmarkError, match="pip install --no-deps nothing==1"):
        packages.package_folder("no_such_benchmark", "nothing==1")
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(MixQuantError, match="scores would not compare"):
        packages.check_data(tmp_path, {"data.json": "0" * 16}, "nothing==1")
    with pytest.raises(MixQuantError, match=r"lacks the file other\.json"):
        packages.check_data(tmp_path, {"other.json": "0" * 16}, "nothing==1")
