"""``mixquant demo`` around an engine that stands in: what it shows, what it keeps, and what it says comes next."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from stand_in import ENGINES, StandIn

from mixquant_agents import ScriptedEngine, TurnStore
from mixquant_agents.cli.app import run
from mixquant_agents.cli.output import result_console
from mixquant_workflows.cli.demo import comparison_table
from mixquant_workflows.demo import run_demo

pytestmark = pytest.mark.usefixtures("stand_ins")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "turns.sqlite"
    monkeypatch.setenv("MIXQUANT_STORE", str(path))
    return path


def test_demo_records_and_names_the_next_step(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--tools", "calculator"]) == 0
    out, err = capsys.readouterr()
    assert "calculator(expression='37*43')" in out
    assert "policy mixquant-nvfp4: reads in NVFP4, writes exact (emulated here" in out
    assert f"Recorded in {store}" in err
    assert err.strip().endswith("dashboard --open")
    with TurnStore(store) as turns:
        (thread,) = turns.threads()
        assert thread.thread_id.startswith("demo/mixquant-nvfp4/")
        assert thread.turns == 2
        tools = [span for span in turns.spans(thread=thread.thread_id) if span.kind == "tool"]
    assert [span.name for span in tools] == ["calculator"]


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H200"])
def test_policies_are_compared_side_by_side(
    device: str, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "device", device)
    assert run(["demo", "--tools", "calculator", "--policy", "exact,mixquant-nvfp4"]) == 0
    out = capsys.readouterr().out
    table = out[out.index("The same questions under each policy") :]
    assert "exact" in table
    assert "of these quantized" in table
    assert table.count("It is 1591.") == 2
    assert "prefill" not in table, "times of an emulation are no comparison"
    assert len(ENGINES) == (1 if device == "cpu" else 2)
    assert all(engine.closed for engine in ENGINES)
    with TurnStore(store) as turns:
        assert {thread.thread_id.split("/")[1] for thread in turns.threads()} == {"exact", "mixquant-nvfp4"}


def test_demo_says_how_much_was_read_in_low_precision(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--tools", "calculator", "--policy", "exact,mixquant-nvfp4,uniform-nvfp4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    with TurnStore(store) as turns:
        by_policy = {thread.policies[0]: turns.thread(thread.thread_id) for thread in turns.threads()}
    for policy in ("mixquant-nvfp4", "uniform-nvfp4"):
        read = sum(turn.prefill_tokens or 0 for turn in by_policy[policy])
        quantized = sum(turn.quantized_tokens or 0 for turn in by_policy[policy])
        assert f"{policy} read {read} tokens, {quantized} of them in NVFP4." in out
    assert "uniform-nvfp4 read" in out
    assert out.count("Exact by design: the tools and the system message (read once, then cached)") == 1
    assert "the first 4 tokens of a prompt, its last 124." in out
    assert " exact read " not in out, "it quantizes nothing"


def test_nothing_is_kept_when_asked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--tools", "calculator", "--no-record", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["answer"] == "It is 1591."
    assert not store.exists()
    assert "Recorded" not in err


def test_store_that_cannot_be_used_costs_no_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXQUANT_STORE", str(tmp_path / "file" / "turns.sqlite"))
    assert run(["demo", "--tools", "calculator"]) == 0
    assert "nothing is recorded: turn store" in capsys.readouterr().err
    assert run(["demo", "--tools", "calculator", "--store", str(tmp_path / "file" / "x")]) == 1


def test_content_is_kept_of_built_in_questions_only(store: Path) -> None:
    assert run(["demo", "--tools", "calculator"]) == 0
    assert run(["demo", "--tools", "calculator", "--question", "How much is my rent times twelve?"]) == 0
    with TurnStore(store) as turns:
        kept = [turns.content(turn) for thread in turns.threads() for turn in turns.thread(thread.thread_id)]
    assert len(kept) == 4
    texts = [str(content.messages) for content in kept if content is not None]
    assert len(texts) == 2
    assert all("37 times 43" in text for text in texts)


def test_demo_answers_in_json_for_each_policy(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--tools", "calculator", "--policy", "exact", "--policy", "uniform-nvfp4", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {entry["policy"] for entry in runs} == {"exact", "uniform-nvfp4"}
    assert {entry["answer"] for entry in runs} == {"It is 1591.", "It is 2."}


async def test_times_are_compared_where_formats_are_native(capsys: pytest.CaptureFixture[str]) -> None:
    result = await run_demo(ScriptedEngine(["Yes."]), [], ["Is it?"])
    native = [dataclasses.replace(result, policy=name, emulated=False) for name in ("exact", "mixquant-fp8")]
    result_console().print(comparison_table(["Is it?"], native))
    table = capsys.readouterr().out
    assert "reading (prefill), s" in table
    assert table.count("Yes.") == 2
