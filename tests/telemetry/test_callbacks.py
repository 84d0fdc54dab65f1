"""Tools, nodes and runs are timed by callbacks, in sync, async, parallel, failing and cancelled graphs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from mixquant_agents.telemetry import NullRecorder, RunLink, Span, SpanKind
from mixquant_agents.telemetry.callbacks import TelemetryCallback, observing


class Listening(NullRecorder):
    def __init__(self, content: bool = False) -> None:
        self.spans: list[Span] = []
        self.links: list[RunLink] = []
        self.wants_content = content

    def record_span(self, span: Span) -> None:
        self.spans.append(span)

    def link(self, link: RunLink) -> None:
        self.links.append(link)

    def of(self, kind: SpanKind) -> list[Span]:
        return [span for span in self.spans if span.kind is kind]


@tool
def slow_add(a: int, b: int) -> int:
    """Add, slowly."""
    time.sleep(0.05)
    return a + b


@tool
def broken(secret: str) -> str:
    """Fail."""
    raise RuntimeError(f"cannot read {secret}")


@tool
async def endless() -> str:
    """Never answer."""
    await asyncio.sleep(60)
    return ""


def graph_calling(*calls: tuple[str, dict[str, Any]]) -> Any:
    wanted = [{"name": name, "args": args, "id": f"call{n}"} for n, (name, args) in enumerate(calls)]
    model = GenericFakeChatModel(messages=iter([AIMessage("", tool_calls=wanted), AIMessage("done")]))

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode([slow_add, broken, endless], handle_tool_errors=False))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    return graph.compile()


INPUT = {"messages": [("user", "hello")]}


async def test_run_with_parallel_tools_is_complete() -> None:
    seen = Listening()
    config = {"callbacks": [TelemetryCallback(seen)], "configurable": {"thread_id": "t1"}}
    await graph_calling(("slow_add", {"a": 1, "b": 2}), ("slow_add", {"a": 3, "b": 4})).ainvoke(INPUT, config)

    (agent,) = seen.of(SpanKind.AGENT)
    nodes = seen.of(SpanKind.NODE)
    tools = seen.of(SpanKind.TOOL)
    assert [node.name for node in nodes] == ["model", "tools", "model"]
    assert [one.name for one in tools] == ["slow_add", "slow_add"]
    assert {span.thread_id for span in seen.spans} == {"t1"}
    assert {span.run_id for span in seen.spans} == {agent.span_id}
    assert agent.parent_id is None
    assert {node.parent_id for node in nodes} == {agent.span_id}
    assert {one.parent_id for one in tools} == {nodes[1].span_id}
    assert all(one.seconds >= 0.05 for one in tools)
    assert agent.seconds >= nodes[1].seconds >= max(one.seconds for one in tools)
    assert {one.call_id for one in tools} == {"call0", "call1"}
    assert [(link.root_run_id, link.node) for link in seen.links] == [(agent.span_id, "model")] * 2
    assert seen.links[0].parent_id == nodes[0].span_id


async def test_content_stays_out_unless_wanted() -> None:
    quiet, open_ = Listening(), Listening(content=True)
    for seen in (quiet, open_):
        config = {"callbacks": [TelemetryCallback(seen)]}
        with pytest.raises(RuntimeError):
            await graph_calling(("broken", {"secret": "hunter2"})).ainvoke(INPUT, config)
    assert "hunter2" not in repr(quiet.spans)
    assert quiet.of(SpanKind.TOOL)[0].error == "RuntimeError"
    assert open_.of(SpanKind.TOOL)[0].error == "RuntimeError: cannot read hunter2"
    assert "hunter2" in (open_.of(SpanKind.TOOL)[0].arguments or "")


async def test_cancelled_tool_is_told_as_cancelled_and_nothing_is_kept() -> None:
    seen = Listening()
    handler = TelemetryCallback(seen)
    task = asyncio.create_task(graph_calling(("endless", {})).ainvoke(INPUT, {"callbacks": [handler]}))
    deadline = time.monotonic() + 30
    while not any(run.kind is SpanKind.TOOL for run in list(handler._runs.values())):
        assert time.monotonic() < deadline, "the tool did not begin"
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (one,) = seen.of(SpanKind.TOOL)
    assert one.cancelled
    assert one.error is None
    assert seen.of(SpanKind.AGENT)[0].cancelled
    assert not handler._runs
    assert not handler._roots


async def test_observing_needs_no_callbacks_passed_along() -> None:
    seen = Listening()
    with observing(seen):
        await graph_calling(("slow_add", {"a": 1, "b": 2})).ainvoke(INPUT)
    await graph_calling(("slow_add", {"a": 1, "b": 2})).ainvoke(INPUT)
    assert len(seen.of(SpanKind.TOOL)) == 1
    assert len(seen.of(SpanKind.AGENT)) == 1


async def test_concurrent_runs_do_not_mix() -> None:
    seen = Listening()
    handler = TelemetryCallback(seen)
    graphs = [graph_calling(("slow_add", {"a": n, "b": n})) for n in range(8)]
    await asyncio.gather(
        *(
            graph.ainvoke(INPUT, {"callbacks": [handler], "configurable": {"thread_id": f"t{n}"}})
            for n, graph in enumerate(graphs)
        )
    )
    agents = {span.thread_id: span.span_id for span in seen.of(SpanKind.AGENT)}
    assert len(agents) == 8
    assert all(agents[one.thread_id] == one.run_id for one in seen.of(SpanKind.TOOL))
