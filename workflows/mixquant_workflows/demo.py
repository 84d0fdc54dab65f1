"""The demo: an agent that chooses its own tools, on a real model, with every turn's phases counted and timed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver

from mixquant_agents import MixQuantChatModel, TurnRecord
from mixquant_agents.engine.base import EngineInfo
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import Recorder, TelemetryCallback
from mixquant_tools.calculator import calculator_tool
from mixquant_tools.clock import time_tools
from mixquant_tools.errors import ToolSetupError
from mixquant_tools.file_tools import file_tools
from mixquant_tools.files import Folder
from mixquant_tools.retrieval import DocumentIndex, read_folder, search_tool
from mixquant_workflows.graphs.tool import tool_agent

__all__ = [
    "QUESTIONS",
    "TOOLS",
    "DemoEvents",
    "DemoResult",
    "demo_folder",
    "demo_tools",
    "run_demo",
]

TOOLS = ("calculator", "notes", "files", "time")
"""The kinds of tools that the agent can be given."""
QUESTIONS = (
    ("calculator", "What is 37 times 43?"),
    ("notes", "In what kind of file are records kept? Search the documents."),
    ("files", "Read the file decode.md. What is decode bound by?"),
    ("time", "Which weekday is it in Tokyo?"),
)
"""``(the tool it wants, the question)``."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo did.

    Attributes:
        start_seconds: time the engine took to start.
        thread: the thread's id in the turn store.
        turns: one record per model call, in order.
        answers: of each question its answer.
    """

    model: str
    policy: str
    emulated: bool | None
    start_seconds: float | None
    thread: str
    turns: tuple[TurnRecord, ...]
    answers: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The answer to the last question; empty if there was none."""
        return self.answers[-1] if self.answers else ""

    def as_json(self) -> dict[str, Any]:
        """A plain JSON object."""
        return {
            "model": self.model,
            "policy": self.policy,
            "emulated": self.emulated,
            "start_seconds": self.start_seconds,
            "thread": self.thread,
            "turns": [turn.model_dump(mode="json") for turn in self.turns],
            "answers": list(self.answers),
            "answer": self.answer,
        }


@dataclass(frozen=True, slots=True)
class DemoEvents:
    """What a caller may watch: each callback gets what happened, when it happens."""

    started: Callable[[EngineInfo], None] = lambda info: None
    question: Callable[[str], None] = lambda text: None
    call: Callable[[str, dict[str, Any]], None] = lambda name, arguments: None
    result: Callable[[str], None] = lambda text: None
    token: Callable[[str], None] = lambda text: None
    turn: Callable[[TurnRecord], None] = lambda record: None


def demo_folder(folder: Path | None) -> Path:
    """The folder that the agent searches and reads: ``folder``, or the notes about this project that come with it."""
    return Path(__file__).with_name("demo_notes") if folder is None else folder


def demo_tools(folder: Path, kinds: Sequence[str] = TOOLS) -> list[BaseTool]:
    """The agent's tools.

    Args:
        folder: what is searched and read; nothing is ever written there.
        kinds: any of :data:`TOOLS`.

    Raises:
        ConfigError: a kind is unknown; or there is no such folder, or no text in it.
    """
    if unknown := sorted(set(kinds) - set(TOOLS)):
        raise ConfigError(f"no tools are called {', '.join(map(repr, unknown))}; there are {', '.join(TOOLS)}")
    makers: dict[str, Callable[[], list[BaseTool]]] = {
        "calculator": lambda: [calculator_tool()],
        "notes": lambda: [search_tool(DocumentIndex(list(read_folder(folder)), max_chars=700), max_chars=600)],
        "files": lambda: [
            tool for tool in file_tools(Folder(folder, writable=False)) if tool.name in ("list_files", "read_file")
        ],
        "time": lambda: time_tools()[:1],
    }
    try:
        return [tool for kind in TOOLS if kind in kinds for tool in makers[kind]()]
    except ToolSetupError as error:
        raise ConfigError(str(error)) from error


async def run_demo(
    engine: Any,
    tools: Sequence[BaseTool],
    questions: Sequence[str],
    *,
    max_tokens: int = 96,
    events: DemoEvents | None = None,
    recorder: Recorder | None = None,
) -> DemoResult:
    """Ask each question in one thread of a tool agent; the model itself chooses what to call.

    Args:
        engine: what the chat model runs on; closed by its owner.
        tools: what the agent has, see :func:`demo_tools`.
        questions: asked one after the other; later turns find earlier ones in the prefix cache.
        max_tokens: longest answer.
        events: callbacks.
        recorder: keeps the turns, tools and nodes.
    """
    events = events or DemoEvents()
    await engine.start()
    info, seconds = engine.info, engine.start_seconds
    recorders = () if recorder is None else (recorder,)
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=max_tokens, recorders=recorders)
    events.started(info)
    graph = tool_agent(model, tools, max_steps=4, checkpointer=InMemorySaver())
    thread = f"demo/{info.policy}/{uuid.uuid4().hex[:8]}"
    callbacks = [TelemetryCallback(recorder) for recorder in recorders]
    config: RunnableConfig = {"configurable": {"thread_id": thread}, "callbacks": [*callbacks]}
    records: list[TurnRecord] = []
    answers: list[str] = []
    for question in questions:
        events.question(question)
        answer = ""
        stream = graph.astream({"messages": [("user", question)]}, config, stream_mode=["messages", "updates"])
        async with contextlib.aclosing(stream):  # type: ignore[type-var]  # typed as an iterator, made by a generator
            event: Any
            async for event in stream:
                mode, item = event
                if mode == "messages":
                    if isinstance(item[0], AIMessageChunk):
                        events.token(str(item[0].text))
                    continue
                for update in item.values():
                    for message in (update or {}).get("messages", []):
                        answer = _watch(message, events, records) or answer
        answers.append(answer)
    return DemoResult(
        model=info.model,
        policy=info.policy,
        emulated=info.emulated,
        start_seconds=seconds,
        thread=thread,
        turns=tuple(records),
        answers=tuple(answers),
    )


def _watch(message: Any, events: DemoEvents, records: list[TurnRecord]) -> str:
    """Report one new message of the graph; returns the answer's text if it is one."""
    if isinstance(message, ToolMessage):
        events.result(str(message.text))
    if not isinstance(message, AIMessage):
        return ""
    turn = message.response_metadata.get("turn")
    if turn is not None:
        records.append(TurnRecord.model_validate(turn))
        events.turn(records[-1])
    for call in message.tool_calls:
        events.call(call["name"], call["args"])
    return "" if message.tool_calls else str(message.text)
