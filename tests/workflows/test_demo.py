"""The demo: the model chooses among the tools it was given, and every turn is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixquant_agents import ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError
from mixquant_workflows.demo import QUESTIONS, TOOLS, DemoEvents, demo_folder, demo_tools, run_demo


def test_demo_kinds_pick_the_tools() -> None:
    folder = demo_folder(None)
    assert [tool.name for tool in demo_tools(folder)] == [
        "calculator",
        "search_documents",
        "list_files",
        "read_file",
        "current_time",
    ]
    assert [tool.name for tool in demo_tools(folder, ["time", "calculator"])] == ["calculator", "current_time"]
    assert demo_tools(folder, []) == []
    assert tuple(kind for kind, _ in QUESTIONS) == TOOLS
    with pytest.raises(ConfigError, match="no tools are called 'sql'; there are calculator, notes, files, time"):
        demo_tools(folder, ["sql"])
    with pytest.raises(ConfigError, match="/no/such/folder"):
        demo_tools(Path("/no/such/folder"))


async def test_demo_events_come_in_order() -> None:
    engine = ScriptedEngine(
        [
            ScriptedTurn(tool_calls=[{"name": "calculator", "args": {"expression": "6*7"}}]),
            "It is 42.",
            ScriptedTurn(tool_calls=[{"name": "search_documents", "args": {"query": "prefill"}}]),
            "Prefill reads the prompt.",
        ]
    )
    seen: list[tuple[str, Any]] = []
    text: list[str] = []
    events = DemoEvents(
        started=lambda seconds: seen.append(("started", seconds)),
        question=lambda question: seen.append(("question", question)),
        call=lambda name, arguments: seen.append((name, arguments)),
        result=lambda result: seen.append(("result", result)),
        token=text.append,
    )
    result = await run_demo(
        engine, demo_tools(demo_folder(None)), ["What is 6 times 7?", "What is prefill?"], events=events
    )
    assert [what for what, _ in seen] == [
        *("started", "question", "calculator", "result"),
        *("question", "search_documents", "result"),
    ]
    assert seen[3] == ("result", "42")
    assert "Prefill is the reading of the prompt" in seen[6][1]
    assert "".join(text) == "It is 42.Prefill reads the prompt."
    assert result.answer == "Prefill reads the prompt."
    assert [bool(turn.tool_calls) for turn in result.turns] == [True, False, True, False]
    assert result.answers == ("It is 42.", "Prefill reads the prompt.")
    fields = {"model", "policy", "emulated", "start_seconds", "thread", "turns", "answers", "answer"}
    assert set(result.as_json()) == fields


@pytest.mark.engine
async def test_embedded_model_chooses_the_tool(engine: Any) -> None:
    called: list[str] = []
    events = DemoEvents(call=lambda name, arguments: called.append(name))
    result = await run_demo(engine, demo_tools(demo_folder(None)), [QUESTIONS[0][1], QUESTIONS[3][1]], events=events)
    assert called == ["calculator", "current_time"]
    assert result.emulated is True
    assert all(turn.quantized_tokens for turn in result.turns)
    assert result.turns[1].cached_tokens
