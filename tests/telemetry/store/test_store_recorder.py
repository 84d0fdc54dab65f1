"""From the chat model to the store: an agent's graph on the scripted engine, recorded with all that belongs to it."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import EngineDeadError
from mixquant_agents.telemetry import Retention, SpanKind, StoreRecorder
from mixquant_agents.telemetry.callbacks import TelemetryCallback
from mixquant_agents.telemetry.store.reader import TurnStore


@tool
async def search_notes(query: str) -> str:
    """Search the notes."""
    await asyncio.sleep(0.1)
    return f"three notes mention {query}"


def agent(recorder: StoreRecorder) -> Any:
    call = {"name": "search_notes", "args": {"query": "budget"}}
    engine = ScriptedEngine(
        [ScriptedTurn(tool_calls=[call], prefill_seconds=0.02), ScriptedTurn(text="Three notes do.")]
    )
    model = MixQuantChatModel(engine=engine, recorders=(recorder,)).bind_tools([search_notes])

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", ask)
    graph.add_node("tools", ToolNode([search_notes]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    return graph.compile()


QUESTION = {"messages": [HumanMessage("Which of my notes mention the budget? " * 20)]}


@pytest.mark.parametrize("content", [False, True])
async def test_graph_thread_is_complete(tmp_path: Path, content: bool) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=content)
    config = {"callbacks": [TelemetryCallback(recorder)], "configurable": {"thread_id": "t1"}}
    await agent(recorder).ainvoke(QUESTION, config)
    recorder.close()
    assert recorder.problem is None
    store = TurnStore(tmp_path / "turns.sqlite")
    first, second = store.thread("t1")
    assert (first.turn_index, second.turn_index) == (0, 1)
    assert first.tool_calls == ("search_notes",)
    assert {first.node, second.node} == {"model"}
    assert first.root_run_id == second.root_run_id != first.run_id
    assert first.tool_seconds_before is None
    (tool_span,) = [span for span in store.spans(thread="t1") if span.kind is SpanKind.TOOL]
    assert tool_span.seconds >= 0.1
    assert second.tool_seconds_before == pytest.approx(tool_span.seconds, abs=0.01)
    assert (second.cached_tokens or 0) > 0
    finding = store.prefix(second)
    assert finding is not None, "the engine gave the prompt's tokens"
    assert finding.verdict == "reused"
    kinds = [span.kind for span in store.spans(thread="t1")]
    assert kinds.count(SpanKind.TOOL) == 1
    assert kinds.count(SpanKind.NODE) == 3
    said = store.content(second)
    if content:
        assert said is not None
        assert [message["role"] for message in said.messages][-2:] == ["assistant", "tool"]
        assert (said.answer or {})["content"] == "Three notes do."
    else:
        assert said is None
        assert b"budget" not in (tmp_path / "turns.sqlite").read_bytes()


async def test_failed_and_aborted_turns_are_recorded(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    engine = ScriptedEngine([ScriptedTurn(text="a b c d", fail_after=2), ScriptedTurn(text="a b c", hang_after=1)])
    model = MixQuantChatModel(engine=engine, recorders=(recorder,))
    with pytest.raises(EngineDeadError):
        await model.ainvoke("one")
    task = asyncio.create_task(model.ainvoke("two"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    recorder.close()
    aborted, failed = TurnStore(tmp_path / "turns.sqlite").turns()
    assert (failed.error or "").startswith("EngineDeadError")
    assert aborted.aborted
    assert aborted.error is None
    for turn, said in ((failed, 2), (aborted, 1)):
        assert turn.prompt_tokens == (turn.cached_tokens or 0) + (turn.prefill_tokens or 0) > 0
        assert (turn.decode_tokens, turn.quantized_tokens) == (said, None)


async def test_model_that_was_pickled_records_into_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = StoreRecorder("turns.sqlite", content=True, retention=Retention(max_age_days=1))
    model = MixQuantChatModel(engine=ScriptedEngine(["yes"], cycle=True), recorders=(recorder,))
    await model.ainvoke("one")
    sent = pickle.dumps(model)  # while the recorder's thread runs
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = pickle.loads(sent)  # noqa: S301 - our own bytes
    await again.ainvoke("two")
    for other in (*again.recorders, copy.copy(recorder)):
        assert other.wants_content
        assert other._store._retention == Retention(max_age_days=1)
        other.close()
    recorder.close()
    assert len(TurnStore(tmp_path / "turns.sqlite").turns()) == 2


async def test_store_that_cannot_be_written_fails_no_turn(tmp_path: Path) -> None:
    damaged = tmp_path / "turns.sqlite"
    damaged.write_bytes(b"no database" * 300)
    recorder = StoreRecorder(damaged)
    model = MixQuantChatModel(engine=ScriptedEngine(["fine"]), recorders=(recorder,))
    assert (await model.ainvoke("hello")).content == "fine"
    assert recorder.flush(0.5) is False
    assert "not a SQLite database" in (recorder.problem or "")
    recorder.close()


@pytest.mark.parametrize("content", [False, True])
def test_error_text_is_recorded_only_with_content(tmp_path: Path, content: bool) -> None:
    """It may repeat the prompt, or what a server said, a key included."""
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=content)
    hooked: list[Any] = []
    failing = ScriptedEngine([EngineDeadError("the server said: Incorrect key sk-secret, prompt was 'my diary'")])
    model = MixQuantChatModel(engine=failing, recorders=(recorder, hooked.append))
    with pytest.raises(EngineDeadError, match="sk-secret"):
        model.invoke("my diary")
    model.close()
    recorder.close()
    with TurnStore(tmp_path / "turns.sqlite") as store:
        (turn,) = store.turns()
    assert ("sk-secret" in turn.error) is content
    assert turn.error.startswith("EngineDeadError")
    assert [record.error for record in hooked] == ["EngineDeadError"]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"sk-secret" in stored) is content
    assert (b"diary" in stored) is content
