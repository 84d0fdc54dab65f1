"""The demo: a retrieval agent over real text files, on a real model, with every turn's phases counted and timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

import mixquant_agents
from mixquant_agents import MixQuantChatModel, TurnRecord
from mixquant_tools.retrieval import Document, DocumentIndex, read_folder
from mixquant_workflows.graphs.retrieval import retrieval_agent

__all__ = ["QUESTIONS", "DemoEvents", "DemoResult", "demo_documents", "run_demo"]

QUESTIONS = (
    "What may the chat package import?",
    "Which tests need a browser?",
)
SYSTEM = (
    "You answer questions about documents. Search first, then answer in one or two sentences from the passages found."
)


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo did.

    Attributes:
        start_seconds: time the engine took to start.
        turns: one record per model call, in order.
        answer: the answer to the last question.
    """

    model: str
    policy: str
    emulated: bool | None
    start_seconds: float | None
    turns: tuple[TurnRecord, ...]
    answer: str

    def as_json(self) -> dict[str, Any]:
        """A plain JSON object."""
        return {
            "model": self.model,
            "policy": self.policy,
            "emulated": self.emulated,
            "start_seconds": self.start_seconds,
            "turns": [turn.model_dump(mode="json") for turn in self.turns],
            "answer": self.answer,
        }


@dataclass(frozen=True, slots=True)
class DemoEvents:
    """What a caller may watch: each callback gets the text (or record) as it happens."""

    started: Callable[[float | None], None] = lambda seconds: None
    question: Callable[[str], None] = lambda text: None
    search: Callable[[str], None] = lambda query: None
    found: Callable[[int], None] = lambda passages: None
    token: Callable[[str], None] = lambda text: None
    turn: Callable[[TurnRecord], None] = lambda record: None


def demo_documents(folder: Path | None) -> tuple[str, list[Document]]:
    """Where the demo's documents are and what they say.

    Args:
        folder: any folder with text files. ``None`` takes this project's own Markdown files from its checkout, or the
            current folder where the package is installed without one.

    Raises:
        ToolSetupError: no such folder, or no text in it.
    """
    if folder is not None:
        return str(folder), list(read_folder(folder))
    root = Path(mixquant_agents.__file__).parent.parent
    if not (root / "pyproject.toml").is_file():
        root = Path.cwd()
    # what explains the project; package data and results below other folders would only blur the search
    own = [document for document in read_folder(root, suffixes={".md"}) if _explains(document.path)]
    return str(root), own or list(read_folder(root))


def _explains(path: str) -> bool:
    return "/" not in path or path.startswith("docs/")


async def run_demo(
    engine: Any,
    documents: Sequence[Document],
    questions: Sequence[str] = QUESTIONS,
    *,
    max_tokens: int = 64,
    events: DemoEvents | None = None,
) -> DemoResult:
    """Ask each question in one thread of a retrieval agent.

    Args:
        engine: what the chat model runs on; closed by its owner.
        documents: what is searched.
        questions: asked one after the other; later turns find earlier ones in the prefix cache.
        max_tokens: longest answer.
        events: callbacks.
    """
    events = events or DemoEvents()
    index = DocumentIndex(documents, max_chars=700)
    capabilities = await engine.capabilities()
    seconds = getattr(engine, "start_seconds", None)
    model = MixQuantChatModel(engine=engine, temperature=0, repetition_penalty=1.1, max_tokens=max_tokens)
    events.started(seconds)
    graph = retrieval_agent(model, index, guided=True, system=SYSTEM, max_chars=1_800, checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "demo"}}
    records: list[TurnRecord] = []
    answer = ""
    for question in questions:
        events.question(question)
        stream = graph.astream({"messages": [("user", question)]}, config, stream_mode=["messages", "updates"])
        async with contextlib.aclosing(stream):  # type: ignore[type-var]
            event: Any
            async for event in stream:
                mode, item = event
                if mode == "messages":
                    chunk, metadata = item
                    if isinstance(chunk, AIMessageChunk) and metadata["langgraph_node"] in ("answer", "conclude"):
                        events.token(str(chunk.text))
                    continue
                for update in item.values():
                    for message in (update or {}).get("messages", []):
                        answer = _watch(message, events, records) or answer
    return DemoResult(
        model=capabilities.model,
        policy=capabilities.policy,
        emulated=capabilities.emulated,
        start_seconds=seconds,
        turns=tuple(records),
        answer=answer,
    )


def _watch(message: Any, events: DemoEvents, records: list[TurnRecord]) -> str:
    """Report one new message of the graph; returns the answer's text if it is one."""
    if isinstance(message, ToolMessage):
        events.found(len(message.artifact or []))
    if not isinstance(message, AIMessage):
        return ""
    turn = message.response_metadata.get("turn")
    if turn is not None:
        records.append(TurnRecord.model_validate(turn))
        events.turn(records[-1])
    for call in message.tool_calls:
        events.search(str(call["args"].get("query", "")))
    return "" if message.tool_calls else str(message.text)
