"""A long dialogue: old turns are summarised when the context fills and kept as notes, which come back when they matter.

Prompt layout, for the prefix cache::

    system prompt and tools   never change
    summary                   changes only when the context fills, then down to half of it, so seldom
    dialogue                  only ever grows at its end; recalled notes are part of the message that asked for them
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from mixquant_tools.errors import LimitError
from mixquant_tools.retrieval import NoteBook, note_tools
from mixquant_workflows.checkpoints import Checkpoints, as_checkpointer
from mixquant_workflows.graphs.steps import (
    INVALID,
    TOO_MANY,
    answered,
    bind,
    calling,
    last_answer,
    refusal,
    this_task,
    unanswered,
)

__all__ = ["MemoryState", "memory_agent"]

SYSTEM = "You are a helpful assistant with a long memory. Notes from earlier talks may stand before a question."
MAX_STEPS = 8
"""Most model calls per user message; the last one may not call tools."""
SUMMARISE = "Write down in a few sentences what was said so far: facts, names, numbers, decisions, open questions."


class MemoryState(MessagesState):
    """The dialogue still in the context, and the summary of what came before it."""

    summary: str


def memory_agent(
    model: BaseChatModel,
    notes: NoteBook,
    *,
    owner: str = "",
    use_tools: bool = False,
    system: str = SYSTEM,
    max_tokens: int = 6_000,
    recalled: int = 3,
    checkpointer: Checkpoints = None,
) -> CompiledStateGraph[Any]:
    """recall → answer (→ tools → answer) → summarise if the context is full.

    Args:
        notes: where dropped turns and saved facts are kept.
        owner: whose notes these are.
        use_tools: let the model save and recall notes itself, too.
        max_tokens: tokens of dialogue at which it is summarised; leave room for the answer below the model's window.
        recalled: most notes put before a user message.
        checkpointer: keeps the state by ``thread_id``; a path makes an SQLite file.
    """
    tools = note_tools(notes, owner) if use_tools else []

    def layout(state: MemoryState) -> list[AnyMessage]:
        summary = f"\n\nWhat was said before:\n{state['summary']}" if state.get("summary") else ""
        return [SystemMessage(system + summary), *answered(state["messages"])]

    def recall(state: MemoryState) -> dict[str, Any]:
        question = state["messages"][-1]
        hits = notes.search(str(question.text), recalled, owner)
        if not isinstance(question, HumanMessage) or not hits or question.additional_kwargs.get("recalled"):
            return {}
        text = "Notes:\n" + "\n".join(f"- {note}" for _, note in hits) + "\n\n"
        content = question.content
        content = text + content if isinstance(content, str) else [{"type": "text", "text": text}, *content]
        marks = {"recalled": [number for number, _ in hits], "said": str(question.text)}
        additional_kwargs = {**question.additional_kwargs, **marks}
        return {"messages": [question.model_copy(update={"content": content, "additional_kwargs": additional_kwargs})]}

    def too_many(state: MemoryState) -> bool:
        task = this_task(state["messages"])
        return sum(isinstance(message, AIMessage) for message in task) >= MAX_STEPS - 1

    def route(state: MemoryState) -> Literal["tools", "refuse", "summarise", "__end__"]:
        answer = last_answer(state["messages"])
        if answer.tool_calls and not too_many(state):
            return "tools"
        return "refuse" if unanswered(state["messages"]) else after_answer(state)

    def after_answer(state: MemoryState) -> Literal["summarise", "__end__"]:
        messages = state["messages"]
        full = _tokens(last_answer(messages), messages) > max_tokens
        return "summarise" if full and _older_half(messages) else "__end__"

    def after_tools(state: MemoryState) -> Literal["refuse", "answer"]:
        return "refuse" if unanswered(state["messages"]) else "answer"

    def after_refusal(state: MemoryState) -> Literal["conclude", "answer"]:
        return "conclude" if too_many(state) else "answer"

    def shorten(state: MemoryState, summary: AIMessage) -> dict[str, Any]:
        old = _older_half(state["messages"])
        with suppress(LimitError):  # the notebook is full: what is old lives on in the summary
            for message in old:
                text = str(message.additional_kwargs.get("said") or message.text).strip()
                if text and not isinstance(message, ToolMessage):
                    notes.add(f"{'User' if isinstance(message, HumanMessage) else 'Assistant'}: {text}"[:4_000], owner)
        gone = [RemoveMessage(id=str(message.id)) for message in old]
        return {"summary": str(summary.text).strip() or state.get("summary", ""), "messages": gone}

    def ask_summary(state: MemoryState) -> list[AnyMessage]:
        return [*layout(state), HumanMessage(SUMMARISE)]

    graph = StateGraph(MemoryState)
    graph.add_node("recall", recall)
    graph.add_node("answer", calling(bind(model, tools), layout))
    graph.add_node("refuse", refusal(lambda state: TOO_MANY if too_many(state) else INVALID))
    graph.add_node("conclude", calling(bind(model, tools, "none"), layout))
    graph.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    # The summary is asked for at the end of the same prompt, so that all of it comes from the prefix cache.
    graph.add_node("summarise", calling(bind(model, tools, "none"), ask_summary, shorten))
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "answer")
    graph.add_conditional_edges("answer", route)
    graph.add_conditional_edges("tools", after_tools)
    graph.add_conditional_edges("refuse", after_refusal)
    graph.add_conditional_edges("conclude", after_answer)
    graph.add_edge("summarise", END)
    return graph.compile(checkpointer=as_checkpointer(checkpointer), name="memory_agent")


def _tokens(answer: AIMessage, messages: Sequence[AnyMessage]) -> int:
    """Tokens of the dialogue: as the engine counted them, else an estimate."""
    if answer.usage_metadata:
        return answer.usage_metadata["total_tokens"]
    return count_tokens_approximately(messages)


def _older_half(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """The older messages, about half of the text, ending before a user message (so that no tool result loses its
    call)."""
    half = sum(len(str(message.text)) for message in messages) / 2
    size = 0
    for index, message in enumerate(messages):
        if size >= half and isinstance(message, HumanMessage):
            return messages[:index]
        size += len(str(message.text))
    return []
