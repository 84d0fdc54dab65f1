"""The held-out suites: their data file, how tasks are asked, and verdicts."""

from __future__ import annotations

import collections
import gzip
from pathlib import Path

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.errors import ConfigError, MixQuantError
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites import heldout
from mixquant_workflows.suites.base import Suite
from mixquant_workflows.suites.heldout import HeldOut


@pytest.mark.parametrize(
    "chosen",
    [
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
