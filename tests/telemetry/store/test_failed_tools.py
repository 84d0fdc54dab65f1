"""What went wrong beside the turns: tools that failed, and runs that ended with an error, by thread."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import interrupt
from telemetry_help import at, make_turn

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder, TelemetryCallback
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import ThreadSummary
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.schema import FAILED_SPANS


@tool
def price_of(item: str) -> float:
    """The price of an item."""
    return {"pen": 1.5}[item]


@tool
def stock_of(item: str) -> int:
    """Pieces in stock."""
    raise ToolException("the shelf cannot be read")


stock_of.handle_tool_error = True  # its error is the tool's answer


@tool
def buy(item: str) -> str:
    """Buy an item, once a person agrees."""
    return str(interrupt(f"Buy {item}?"))


def run_agent(store: Path, thread: str, called: str, *, handled: bool) -> ThreadSummary:
    """One question to an agent that calls ``called``; how the list shows its thread."""
    recorder = StoreRecorder(store)
    calls: Any = [{"name": called, "args": {"item": "pens"}}]
    engine = ScriptedEngine([ScriptedTurn(tool_calls=calls), "I could not find out."])
    model = MixQuantChatModel(engine=engine, recorders=[recorder])
    tools = [price_of, stock_of, buy]
    bound = model.bind_tools(tools)
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=handled))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    agent = graph.compile(checkpointer=InMemorySaver())
    try:
        agent.invoke(
            {"messages": [HumanMessage("How many pens are there?")]},
            {"callbacks": [TelemetryCallback(recorder)], "configurable": {"thread_id": thread}},
        )
    except KeyError:
        assert not handled
    recorder.close()
    assert recorder.dropped == 0
    with TurnStore(store) as turns:
        (summary,) = turns.threads(TurnFilter(thread=thread))
    return summary


def test_error_that_the_agent_goes_on_after_fails_no_turn_and_no_run(path: Path) -> None:
    summary = run_agent(path, "t", "price_of", handled=True)
    assert (summary.turns, summary.bad, summary.failed_runs, summary.failed_tools) == (2, 0, 0, 1)


def test_error_that_ends_the_run_is_counted_as_both(path: Path) -> None:
    summary = run_agent(path, "t", "price_of", handled=False)
    assert (summary.turns, summary.bad, summary.failed_runs, summary.failed_tools) == (1, 0, 1, 1)


def test_tool_that_answers_with_an_error_failed(path: Path) -> None:
    summary = run_agent(path, "t", "stock_of", handled=False)
    assert (summary.turns, summary.bad, summary.failed_runs, summary.failed_tools) == (2, 0, 0, 1)


def test_tool_that_waits_for_a_person_did_not_fail(path: Path) -> None:
    summary = run_agent(path, "t", "buy", handled=False)
    assert (summary.turns, summary.failed_runs, summary.failed_tools) == (1, 0, 0)


def failed_span(number: int, thread: str, **values: Any) -> Span:
    return Span(
        **{
            "kind": SpanKind.TOOL, "name": "search", "span_id": f"s{number}", "run_id": "r", "thread_id": thread,
            "started_at": at(number), "seconds": 0.1, "error": "ValueError", **values,
        }
    )  # fmt: skip


@pytest.fixture
def several(path: Path) -> TurnStore:
    """Threads ``fine``, ``tools`` (two errors), ``sub`` (a sub-agent failed), ``cut``, ``run`` and ``turn``."""
    recorder = StoreRecorder(path)
    for number, thread in enumerate(("turn", "run", "cut", "sub", "tools", "fine")):
        recorder.record(make_turn(number, thread_id=thread, error="boom" if thread == "turn" else None))
    spans = (
        ("tools", {}), ("tools", {"kind": SpanKind.RETRIEVAL}), ("fine", {"error": None}),
        ("sub", {"kind": SpanKind.AGENT, "parent_id": "s1"}), ("sub", {"kind": SpanKind.NODE}),
        ("cut", {"cancelled": True}), ("run", {"kind": SpanKind.AGENT}),
    )  # fmt: skip
    for number, (thread, values) in enumerate(spans):
        recorder.record_span(failed_span(number, thread, **values))
    recorder.close()
    assert recorder.dropped == 0
    return TurnStore(path)


def test_threads_are_counted_chosen_and_ordered_by_what_failed(several: TurnStore) -> None:
    counts = {thread.thread_id: (thread.bad, thread.failed_runs, thread.failed_tools) for thread in several.threads()}
    nothing = dict.fromkeys(("fine", "cut", "sub"), (0, 0, 0))
    assert counts == {**nothing, "tools": (0, 0, 2), "run": (0, 1, 0), "turn": (1, 0, 0)}
    assert [thread.thread_id for thread in several.threads(failed_tools=True)] == ["tools"]
    assert not several.threads(TurnFilter(status="bad"), failed_tools=True)
    by_outcome = [thread.thread_id for thread in several.threads(order="bad")]
    assert by_outcome[:2] == ["turn", "tools"], "turns come first, however many tools failed"
    assert set(by_outcome[-2:]) == {"fine", "cut"}


def test_store_that_lacks_the_index_is_read_and_gets_it_from_the_next_writer(several: TurnStore) -> None:
    several.close()
    with closing(sqlite3.connect(several.path)) as connection:
        connection.execute("DROP INDEX spans_failed")
        connection.commit()
    with TurnStore(several.path) as store:
        assert [thread.failed_tools for thread in store.threads(failed_tools=True)] == [2]
    recorder = StoreRecorder(several.path)
    recorder.record(make_turn(9))
    recorder.close()
    with TurnStore(several.path) as store, store.reading() as connection:
        query = f"EXPLAIN QUERY PLAN SELECT thread_id FROM spans WHERE {FAILED_SPANS}"  # noqa: S608 # constant
        assert "spans_failed" in connection.execute(query).fetchone()["detail"]
