"""What the tests of the graphs share: tools, an index, and how a conversation is looked at."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from mixquant_tools.retrieval import Document, DocumentIndex

INDEX = DocumentIndex(
    [
        Document("barn.md", "# Barn\nThe barn is painted red every spring by Olga."),
        Document("horse.md", "# Horse\nThe horse sleeps standing in the northern stable."),
    ]
)
CONFIG: Any = {"configurable": {"thread_id": "a"}}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def broken() -> str:
    """Always fails."""
    raise RuntimeError("disk on fire")


def ask(question: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


def well_formed(messages: list[AnyMessage]) -> bool:
    """Every tool call has its answer, and every tool message its call."""
    asked = [item["id"] for message in messages if isinstance(message, AIMessage) for item in message.tool_calls]
    answered = [message.tool_call_id for message in messages if isinstance(message, ToolMessage)]
    return [id_ for id_ in answered if id_ != "invalid"] == asked


def answers_to_calls(state: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m.tool_call_id, m.status) for m in state["messages"] if isinstance(m, ToolMessage)]


def half_broken(name: str, **args: Any) -> AIMessage:
    """One message with a call that can be read and one that cannot."""
    good = {"name": name, "args": args, "id": "good"}
    bad = {"name": name, "args": "{", "id": "bad", "error": "not JSON"}
    return AIMessage("", tool_calls=[good], invalid_tool_calls=[bad])
