"""Recorded threads become prompts of the same lengths that share the same beginnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.errors import ConfigError
from mixquant_workflows import tool_agent
from mixquant_workflows.runner.trace import fitting, read_trace


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mooncake_trace_shares_blocks(tmp_path: Path) -> None:
    one = {"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]}
    two = {"timestamp": 9, "input_length": 1030, "output_length": 5, "hash_ids": [1, 2, 4]}
    (first,), (second,) = read_trace(write_lines(tmp_path / "m.jsonl", one, two))
    assert (first.prompt_tokens, first.answer_tokens, second.prompt_tokens) == (1100, 7, 1030)
    ours, theirs = first.tokens(), second.tokens()
    assert len(ours) == 1100
    assert ours[:1024] == theirs[:1024]
    assert ours[1024:1030] != theirs[1024:1030]
    kept, left_out = fitting([[first], [second]], 1036)
    assert [[turn.prompt_tokens for turn in thread] for thread in kept] == [[1030]]
    assert left_out == 1


def test_aiperf_trace_grows_by_its_answers(tmp_path: Path) -> None:
    session = {"session_id": "a", "turns": [{"text": "one two three", "output_length": 10}, {"input_length": 20}]}
    ((first, second),) = read_trace(write_lines(tmp_path / "a.jsonl", session))
    assert second.prompt_tokens == first.prompt_tokens + 10 + 20
    assert second.tokens()[: first.prompt_tokens] == first.tokens()


async def test_store_trace_shares_what_was_cached(tmp_path: Path) -> None:
    from mixquant_agents.telemetry import StoreRecorder

    recorder = StoreRecorder(tmp_path / "turns.db")
    model = MixQuantChatModel(engine=ScriptedEngine(["fine"], cycle=True), recorders=(recorder,))
    graph = tool_agent(model, [])
    messages: list[Any] = []
    for number in range(3):
        asked = {"messages": [*messages, HumanMessage(f"Question {number} about horses and barns and more horses")]}
        messages = (await graph.ainvoke(asked, {"configurable": {"thread_id": "t"}}))["messages"]
    await model.aclose()
    recorder.close()
    records = [message.response_metadata["turn"] for message in messages if message.type == "ai"]
    (thread,) = read_trace(tmp_path / "turns.db")
    assert [turn.prompt_tokens for turn in thread] == [record["prompt_tokens"] for record in records]
    assert [turn.answer_tokens for turn in thread] == [record["decode_tokens"] for record in records]
    cached = records[2]["cached_tokens"]
    assert cached > 0
    assert thread[2].tokens()[:cached] == thread[1].tokens()[:cached]


def test_unreadable_trace_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trace file"):
        read_trace(tmp_path / "none")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(ConfigError, match="line 1: not JSON"):
        read_trace(tmp_path / "text")
    with pytest.raises(ConfigError, match="neither input_length"):
        read_trace(write_lines(tmp_path / "x.jsonl", {"a": 1}))
    with pytest.raises(ConfigError, match="request 1"):
        read_trace(write_lines(tmp_path / "y.jsonl", {"input_length": "many"}))
    with pytest.raises(ConfigError, match="no requests"):
        read_trace(write_lines(tmp_path / "z.jsonl"))


@pytest.mark.parametrize("count", ["many", [7], {"a": 1}, -3, True, float("inf")])
@pytest.mark.parametrize(
    "row",
    [
        {"input_length": 3, "output_length": "x"},
        {"session_id": "a", "input_length": "x"},
        {"session_id": "a", "messages": [], "output_length": "x"},
        {"session_id": "a", "payload": {"messages": [], "max_tokens": "x"}},
        {"session_id": "a", "turns": [{"text": "hi", "output_length": "x"}]},
    ],
    ids=["mooncake", "deltas", "sessions", "payload", "turns"],
)
def test_length_that_is_no_number_is_told(tmp_path: Path, row: dict[str, Any], count: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row).replace('"x"', json.dumps(count)) + "\n")
    with pytest.raises(ConfigError, match=r"request 1: (in|out)put_length is"):
        read_trace(path)


@pytest.mark.parametrize(
    "rows",
    [
        [{"session_id": "a", "turns": [7]}],
        [{"payload": "text"}],
        [{"metadata": {}, "metrics": {}, "error": "no"}, {"metadata": "text", "metrics": []}],
        [{"metadata": {}, "metrics": {}, "error": "no"}, {}],
    ],
)
def test_row_of_another_shape_is_told(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"(line|request) [12]: "):
        read_trace(write_lines(tmp_path / "x.jsonl", *rows))


def test_aiperf_sessions_by_lengths_grow_by_answers(tmp_path: Path) -> None:
    first = {"session_id": "a", "input_length": 300, "output_length": 40}
    second = {"session_id": "a", "delay": 1500, "input_length": 150, "output_length": 20}
    ((one, two),) = read_trace(write_lines(tmp_path / "a.jsonl", first, second))
    assert (one.prompt_tokens, two.prompt_tokens, two.gap_seconds) == (300, 490, 1.5)


def test_aiperf_results_are_a_trace_again(tmp_path: Path) -> None:
    def row(turn: int, start: float, end: float, prompt: int, error: Any = None, sent: str = "s1") -> dict[str, Any]:
        told = {
            "conversation_id": "a",
            "x_correlation_id": sent,
            "turn_index": turn,
            "request_start_ns": start * 1e9,
            "request_end_ns": end * 1e9,
        }
        lengths = {"input_sequence_length": prompt, "output_sequence_length": 7}
        metrics = {name: {"value": value, "unit": "tokens"} for name, value in lengths.items()}
        return {"metadata": told, "metrics": metrics, "error": error}

    rows = (row(1, 12.5, 13, 200), row(0, 10, 11, 100), row(2, 14, 15, 300, {"message": "no"}))
    ((one, two),) = read_trace(write_lines(tmp_path / "r.jsonl", *rows))
    assert (one.prompt_tokens, two.prompt_tokens) == (100, 200)
    assert (one.start_seconds, two.start_seconds, two.gap_seconds) == (0.0, 2.5, 1.5)
    again = (row(0, 20, 21, 100, sent="s2"), row(1, 22, 23, 200, sent="s2"))
    first, second = read_trace(write_lines(tmp_path / "w.jsonl", *rows, *again))
    assert (first, [turn.gap_seconds for turn in second]) == ([one, two], [None, 1.0]), "sent twice: two threads"
    with pytest.raises(ConfigError, match="line 1"):
        read_trace(write_lines(tmp_path / "x.jsonl", {"metadata": {}, "metrics": {}}))
