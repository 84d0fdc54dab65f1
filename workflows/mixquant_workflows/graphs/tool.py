"""A ReAct agent: the model calls tools until it can answer, within a step limit, and cannot run in circles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from mixquant_workflows.checkpoints import Checkpoints, as_checkpointer
from mixquant_workflows.graphs.steps import (
    bind,
    last_answer,
    made_calls,
    model_step,
    one_by_one,
    refuse_calls,
    this_task,
)

__all__ = ["tool_agent"]

SYSTEM = "You are a helpful assistant. Use the tools where they help, then answer in words."
INVALID = "the call is not valid JSON of the form the tool wants; make it again"
REPEATED = "this very call was made before; its result is above. Answer with what you know"
TOO_MANY = "no more tool calls are allowed. Answer with what you know"


def tool_agent(
    model: BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]],
    *,
    system: str = SYSTEM,
    max_steps: int = 8,
    max_repeats: int = 2,
    in_order: bool = False,
    checkpointer: Checkpoints = None,
) -> CompiledStateGraph[Any]:
    """model → tools → model → … → answer.

    Args:
        max_steps: most model calls per user message; the last one may not call tools, so the user always gets an
            answer.
        max_repeats: how often the same call with the same arguments may run per user message.
        in_order: run the calls of one message one after another, for tools that share a state; else they run at once.
        checkpointer: keeps the state by ``thread_id``; a path makes an SQLite file.
    """

    def reason_to_stop(state: MessagesState) -> str | None:
        task = this_task(state["messages"])
        made = made_calls(task)
        if any(made.count(call) > max_repeats for call in made_calls([last_answer(task)])):
            return REPEATED
        if sum(isinstance(message, AIMessage) for message in task) >= max_steps - 1:
            return TOO_MANY
        return None

    def route(state: MessagesState) -> Literal["tools", "refuse", "__end__"]:
        answer = last_answer(state["messages"])
        if not answer.tool_calls and not answer.invalid_tool_calls:
            return "__end__"
        return "refuse" if not answer.tool_calls or reason_to_stop(state) else "tools"

    def refuse(state: MessagesState) -> dict[str, Any]:
        return {"messages": refuse_calls(last_answer(state["messages"]), reason_to_stop(state) or INVALID)}

    def after_refusal(state: MessagesState) -> Literal["model", "conclude"]:
        return "conclude" if reason_to_stop(state) else "model"

    graph = StateGraph(MessagesState)
    graph.add_node("model", model_step(bind(model, tools), system))
    node = ToolNode(tools, handle_tool_errors=True)
    graph.add_node("tools", one_by_one(node) if in_order else node)
    graph.add_node("refuse", refuse)
    graph.add_node("conclude", model_step(bind(model, tools, "none"), system))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", route)
    graph.add_edge("tools", "model")
    graph.add_conditional_edges("refuse", after_refusal)
    graph.add_edge("conclude", END)
    return graph.compile(checkpointer=as_checkpointer(checkpointer), name="tool_agent")
