"""Sends the spans of a real LangGraph run to Arize Phoenix over OTLP and checks what Phoenix made of them.

Not part of the suite: Phoenix needs a virtual environment of its own, because its dependencies clash with vLLM's. ::

    python -m venv phoenix && phoenix/bin/pip install arize-phoenix
    python tests/telemetry/phoenix_check.py phoenix/bin/phoenix
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.telemetry import QueueRecorder
from mixquant_agents.telemetry.callbacks import TelemetryCallback
from mixquant_agents.telemetry.export.otel.spans import otlp_span_sink

PORT, GRPC_PORT = 16_006, 14_317
URL = f"http://127.0.0.1:{PORT}"


@tool
def search_notes(query: str) -> str:
    """Search the notes."""
    time.sleep(0.05)
    return f"three notes mention {query}"


async def run_agent(recorder: QueueRecorder) -> None:
    """Two turns with a tool between them, all of it through the library."""
    engine = ScriptedEngine(
        ['<tool_call>\n{"name": "search_notes", "arguments": {"query": "budget"}}\n</tool_call>', "Three notes do."]
    )
    model = MixQuantChatModel(engine=engine, recorders=(recorder,)).bind_tools([search_notes])

    async def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", call)
    graph.add_node("tools", ToolNode([search_notes]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "model")
    question = [HumanMessage("Which of my notes mention the budget? " * 20)]
    config = {"callbacks": [TelemetryCallback(recorder)], "configurable": {"thread_id": "phoenix-check"}}
    await graph.compile().ainvoke({"messages": question}, config)  # type: ignore[arg-type] # a plain dict


def ask(path: str) -> Any:
    with urllib.request.urlopen(URL + path, timeout=10) as answer:  # noqa: S310 # our own address
        return json.load(answer)


def check(spans: list[dict[str, Any]]) -> None:
    """The tree and the figures, as Phoenix holds them."""
    for span in spans:
        parent = next((one["name"] for one in spans if one["context"]["span_id"] == span["parent_id"]), None)
        print(f"{span['span_kind']:6} {span['name']:28} inside {parent}")
    kinds = sorted(span["span_kind"] for span in spans)
    assert kinds == ["AGENT", "CHAIN", "CHAIN", "CHAIN", "LLM", "LLM", "TOOL"], kinds
    by_id = {span["context"]["span_id"]: span for span in spans}
    used = next(span for span in spans if span["span_kind"] == "TOOL")
    assert by_id[used["parent_id"]]["name"] == "node tools"
    assert by_id[by_id[used["parent_id"]]["parent_id"]]["span_kind"] == "AGENT"
    last = max((span for span in spans if span["span_kind"] == "LLM"), key=lambda span: span["start_time"])
    shown = {name: value for name, value in last["attributes"].items() if "token_count" in name or "cache_read" in name}
    print(shown)
    assert last["attributes"]["llm.token_count.prompt"] > 0
    assert last["attributes"]["llm.token_count.prompt_details.cache_read"] > 0, (
        "the second turn reads the first from the cache"
    )
    assert last["attributes"]["gen_ai.usage.cache_read.input_tokens"] > 0


def main(phoenix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "PHOENIX_WORKING_DIR": folder, "PHOENIX_PORT": str(PORT), "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_GRPC_PORT": str(GRPC_PORT), "PHOENIX_TELEMETRY_ENABLED": "false",
        }  # fmt: skip
        process = subprocess.Popen([phoenix, "serve"], env=environment, stdout=subprocess.DEVNULL)  # noqa: S603 # given
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    ask("/v1/projects")
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            recorder = QueueRecorder([otlp_span_sink(f"{URL}/v1/traces")])
            asyncio.run(run_agent(recorder))
            recorder.close()
            spans: list[dict[str, Any]] = []
            while len(spans) < 7 and time.monotonic() < deadline:
                time.sleep(0.5)
                spans = ask("/v1/projects/default/spans?limit=100")["data"]
            check(spans)
            print("Phoenix shows the tree, the tokens and the cache reads")
            if len(sys.argv) > 2:
                input("look at " + URL)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main(sys.argv[1])
