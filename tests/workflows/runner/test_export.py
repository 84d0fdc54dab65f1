"""Threads that travel: exported, and read back as the same turns, tokens, shared beginnings and gaps."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import typer
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from typer.testing import CliRunner

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry import StoreRecorder, TelemetryCallback, TurnContent
from mixquant_workflows import tool_agent
from mixquant_workflows.cli.export import command
from mixquant_workflows.runner.export import export_trace
from mixquant_workflows.runner.trace import TraceTurn, read_trace

SAID = "the fourth floor of the old house by the river"
WORDS = " ".join(f"fact {number} about the house" for number in range(200))


@tool
async def look(place: str) -> str:
    """Look at a place."""
    await asyncio.sleep(0.02)
    return f"{SAID} {WORDS}"


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> Path:
    """Lengths alone were recorded."""
    return await recorded(tmp_path / "turns.db", content=False)


async def recorded(path: Path, *, content: bool) -> Path:
    """Two threads of an agent with a tool; a long system prompt is common to both."""
    recorder = StoreRecorder(path, content=content)
    call = ScriptedTurn(tool_calls=[{"name": "look", "args": {"place": "house"}}])
    engine = ScriptedEngine([call, "A house."], cycle=True)
    model = MixQuantChatModel(engine=engine, recorders=(recorder,))
    agent = tool_agent(model, [look], system=f"You know houses. {WORDS}")
    for thread in ("one", "two"):
        config: Any = {"configurable": {"thread_id": thread}, "callbacks": [TelemetryCallback(recorder)]}
        await agent.ainvoke({"messages": [HumanMessage(f"What is there, {thread}?")]}, config)
    await model.aclose()
    recorder.close()
    return path


def shared(one: TraceTurn, other: TraceTurn) -> int:
    ours, theirs = one.tokens(), other.tokens()
    return next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


def by_name(threads: list[list[TraceTurn]]) -> dict[str, list[TraceTurn]]:
    return {thread[0].thread: thread for thread in threads}


@pytest.mark.parametrize("form", ["mooncake", "aiperf"])
async def test_export_is_read_back_as_the_same_threads(store: Path, tmp_path: Path, form: Any) -> None:
    made = tmp_path / "trace.jsonl"
    told = export_trace(store, made, form)
    assert (told["threads"], told["turns"]) == (2, 4)
    assert SAID not in made.read_text()
    before, after = by_name(read_trace(store)), by_name(read_trace(made))
    assert before.keys() == after.keys() == {"one", "two"}
    for name, turns in before.items():
        assert [(t.prompt_tokens, t.answer_tokens) for t in turns] == [
            (t.prompt_tokens, t.answer_tokens) for t in after[name]
        ]
        gaps = [turn.gap_seconds for turn in after[name]]
        assert gaps[0] is None
        assert gaps[1] == pytest.approx(turns[1].gap_seconds, abs=0.001)
        assert gaps[1] is not None
        assert gaps[1] >= 0.015  # the tool
    block = 512 if form == "mooncake" else 16
    for pair in ((("one", 0), ("one", 1)), (("one", 0), ("two", 0)), (("one", 1), ("two", 1))):
        (a, b), (c, d) = ([threads[name][number] for name, number in pair] for threads in (before, after))
        assert shared(a, b) > 512
        assert shared(c, d) // block == shared(a, b) // block


async def test_content_travels_only_when_asked_for(store: Path, tmp_path: Path) -> None:
    made = tmp_path / "trace.jsonl"
    with pytest.raises(ConfigError, match="no recorded content"):
        export_trace(store, made, "aiperf", content=True)
    store = await recorded(tmp_path / "content.db", content=True)
    for form in ("aiperf", "mooncake"):
        export_trace(store, made, form)  # type: ignore[arg-type]
        assert SAID not in made.read_text()
    export_trace(store, made, "aiperf", content=True)
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert [row["messages"][-1]["role"] for row in rows if row["session_id"] == "one"] == ["user", "tool"]
    assert SAID in rows[1]["messages"][-1]["content"]
    assert len(read_trace(made)) == 2
    with pytest.raises(ConfigError, match="lengths alone"):
        export_trace(store, made, "mooncake", content=True)


async def test_timeline_holds_turns_with_their_phases_and_tools(store: Path, tmp_path: Path) -> None:
    made = tmp_path / "timeline.json"
    app = typer.Typer()
    app.command()(command)
    line = ["--store", str(store), "--format", "perfetto", "--output", str(made), "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, app, line)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["turns"] == 4
    events = json.loads(made.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        "thread one",
        "thread two",
    }
    slices = [event for event in events if event["ph"] == "X"]
    turns = [event for event in slices if event["cat"] == "turn"]
    assert [turn["name"] for turn in turns] == ["turn 0 → look", "turn 1"] * 2
    for phase in (event for event in slices if event["cat"] == "phase"):
        inside = [t for t in turns if t["pid"] == phase["pid"] and t["ts"] <= phase["ts"] + 1]
        assert any(phase["ts"] + phase["dur"] <= t["ts"] + t["dur"] + 1_000 for t in inside)
    assert {event["name"] for event in slices if event["cat"] == "tool"} == {"look"}
    assert SAID not in made.read_text()


async def test_messages_that_are_no_plain_json_travel(tmp_path: Path) -> None:
    """Half of an emoji, a number that JSON has no word for: a file that is whole, and every line of it JSON."""
    path, output = tmp_path / "turns.db", tmp_path / "out.jsonl"
    recorder = StoreRecorder(path, content=True)
    model = MixQuantChatModel(engine=ScriptedEngine(["A house."]), recorders=(recorder,))
    record = (await model.ainvoke("hi")).response_metadata["turn"]
    turn = TurnRecord(**{**record, "turn_id": "odd", "thread_id": "odd"})
    said = {"role": "user", "content": "half \ud83d", "confidence": float("nan"), "limit": float("inf")}
    recorder.record(turn, content=TurnContent(messages=[said]))
    recorder.close()
    assert export_trace(path, output, "aiperf", content=True)["turns"] == 1
    (line,) = output.read_text().splitlines()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    (message,) = json.loads(line, parse_constant=refuse)["messages"]
    assert message == {"role": "user", "content": "half \ud83d", "confidence": None, "limit": None}


def test_export_is_not_written_over_the_store(store: Path) -> None:
    before = store.read_bytes()
    for form in ("mooncake", "perfetto"):
        app = typer.Typer()
        app.command()(command)
        done = CliRunner().invoke(app, ["--store", str(store), "--output", str(store), "--format", form])
        assert isinstance(done.exception, ConfigError)
    assert store.read_bytes() == before
