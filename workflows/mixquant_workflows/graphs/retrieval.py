"""A retrieval agent: plan → search → read → answer, with every citation checked against what was retrieved."""

from __future__ import annotations

import re
from typing import Any, Literal, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from mixquant_tools.retrieval import DocumentIndex, read_tool, search_tool
from mixquant_workflows.checkpoints import Checkpoints, as_checkpointer
from mixquant_workflows.graphs.steps import (
    INVALID,
    OWN,
    bind,
    last_answer,
    model_step,
    refusal,
    refuse_calls,
    this_task,
    unanswered,
)

__all__ = ["Citation", "RetrievalState", "check_citations", "retrieval_agent"]

SYSTEM = (
    "Answer the question from the passages that the search returns. "
    "After each statement name its passage by number in brackets, like [12]. "
    "If the passages do not hold the answer, say so."
)
ENOUGH = "no more searches; answer from what was found"
_MARK = re.compile(r"\[(\d{1,9}(?:\s*,\s*\d{1,9})*)\]")


class Citation(TypedDict):
    """A passage the answer names. ``source`` is ``path:start-end``; ``None`` if no search ever returned that number."""

    number: int
    source: str | None


class RetrievalState(MessagesState):
    """Messages; the passages found for the question at hand (path, lines, text, score); the answer's citations."""

    sources: list[dict[str, Any]]
    citations: list[Citation]


def _found(messages: list[AnyMessage]) -> list[dict[str, Any]]:
    """Passages in the search results among ``messages``, each once, in the order found."""
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    passages = [passage for artifact in artifacts if isinstance(artifact, list) for passage in artifact]
    return list({passage["number"]: passage for passage in passages}.values())


def check_citations(answer: str, passages: list[dict[str, Any]]) -> list[Citation]:
    """The numbers that ``answer`` cites as ``[3]`` or ``[3, 7]``, each once, with the source of those that exist."""
    known = {passage["number"]: passage["source"] for passage in passages}
    numbers = [int(number) for mark in _MARK.findall(answer) for number in mark.split(",")]
    return [Citation(number=number, source=known.get(number)) for number in dict.fromkeys(numbers)]


def retrieval_agent(
    model: BaseChatModel,
    index: DocumentIndex,
    *,
    guided: bool = False,
    system: str = SYSTEM,
    max_searches: int = 4,
    max_chars: int = 6_000,
    checkpointer: Checkpoints = None,
) -> CompiledStateGraph[Any]:
    """Each question is searched for first; then the model may search again, read on, or answer.

    Args:
        guided: for models that cannot choose a tool by themselves (the bare embedded one): the graph names the search
            tool on the first step and allows none on the second. Should the model's own words find nothing, the graph
            searches for the question's.
        max_searches: most rounds of tool calls per question.
        max_chars: longest result of one search, in characters.
        checkpointer: keeps the state by ``thread_id``; a path makes an SQLite file.
    """
    tools = [search_tool(index, max_chars=max_chars)]
    search_name = tools[0].name
    if not guided:  # a guided model answers after one search; a second tool would only tempt it
        tools.append(read_tool(index))

    def rounds(state: RetrievalState) -> int:
        return sum(bool(m.tool_calls) for m in this_task(state["messages"]) if isinstance(m, AIMessage))

    def after_search(state: RetrievalState) -> Literal["broken", "rephrase", "answer"]:
        if unanswered(state["messages"]):
            return "broken"
        return "rephrase" if guided and rounds(state) == 1 and not _found([*this_task(state["messages"])]) else "answer"

    def rephrase(state: RetrievalState) -> dict[str, Any]:
        question = str(this_task(state["messages"])[0].text)[:200]
        call = {"name": search_name, "args": {"query": question}, "id": f"graph-{len(state['messages'])}"}
        return {
            "messages": [
                *refuse_calls(state["messages"], INVALID),
                AIMessage("", tool_calls=[call], response_metadata={"written_by": "graph"}),
            ]
        }

    def invalid(state: RetrievalState) -> bool:
        answer = last_answer(state["messages"])
        return bool(answer.invalid_tool_calls) and not answer.tool_calls

    def after_plan(state: RetrievalState) -> Literal["search", "refuse", "check", "rephrase"]:
        return "rephrase" if guided and invalid(state) else after_answer(state)

    def after_answer(state: RetrievalState) -> Literal["search", "refuse", "check"]:
        answer = last_answer(state["messages"])
        if not answer.tool_calls and not answer.invalid_tool_calls:
            return "check"
        return "search" if answer.tool_calls and rounds(state) <= max_searches else "refuse"

    def check(state: RetrievalState) -> dict[str, Any]:
        task = list(this_task(state["messages"]))
        citations = check_citations(str(last_answer(task).text), _found(state["messages"]))
        update: dict[str, Any] = {"sources": _found(task), "citations": citations}
        wrong = [citation["number"] for citation in citations if citation["source"] is None]
        if not guided and (wrong or not citations) and update["sources"] and not _complained(task):
            what = f"No search returned the passages {wrong}" if wrong else "The answer names no passage"
            complaint = f"{what}. Write the answer again and cite only passages that a search returned, like [12]."
            update["messages"] = [HumanMessage(complaint, name=OWN)]
        return update

    def after_check(state: RetrievalState) -> Literal["conclude", "__end__"]:
        return "conclude" if isinstance(state["messages"][-1], HumanMessage) else "__end__"

    graph = StateGraph(RetrievalState)
    graph.add_node("plan", model_step(bind(model, tools, search_name), system))
    graph.add_node("search", ToolNode(tools, handle_tool_errors=True))
    graph.add_node("broken", refusal(lambda _: INVALID))  # a call that cannot be read, beside others that ran
    graph.add_node("rephrase", rephrase)
    graph.add_node("answer", model_step(bind(model, tools, "none" if guided else "auto"), system))
    graph.add_node("refuse", refusal(lambda _: ENOUGH))
    graph.add_node("conclude", model_step(bind(model, tools, "none"), system))
    graph.add_node("check", check)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", after_plan)
    graph.add_conditional_edges("search", after_search)
    graph.add_conditional_edges("broken", after_search)
    graph.add_edge("rephrase", "search")
    graph.add_conditional_edges("answer", after_answer)
    graph.add_edge("refuse", "conclude")
    graph.add_edge("conclude", "check")
    graph.add_conditional_edges("check", after_check)
    return graph.compile(checkpointer=as_checkpointer(checkpointer), name="retrieval_agent")


def _complained(task: list[AnyMessage]) -> bool:
    return any(isinstance(message, HumanMessage) and message.name == OWN for message in task)
