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
from langgraph.types import Send

from mixquant_agents.errors import ConfigError
from mixquant_workflows.checkpoints import Checkpoints, as_checkpointer
from mixquant_workflows.graphs.steps import (
    INVALID,
    TOO_MANY,
    bind,
    last_answer,
    made_calls,
    model_step,
    one_by_one,
    refusal,
    returned_direct,
    this_task,
    unanswered,
)

__all__ = ["tool_agent"]

SYSTEM = "You are a helpful assistant. Use the tools where they help, then answer in words."
REPEATED = "a call with the very same arguments was made too often. Answer with what you know"


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

    The results of tools with ``return_direct`` are the answer where the model called nothing else and none failed.

    Args:
        max_steps: most model calls per user message; the last one may not call tools, so the user always gets an
            answer.
        max_repeats: how often the same call with the same arguments may run per user message.
        in_order: run the calls of one message one after another, for tools that share a state; they are one step then,
            which a kill or an interrupt in the middle runs again as a whole. Else they run at once, each as its own.
        checkpointer: keeps the state by ``thread_id``; a path makes an SQLite file.

    Raises:
        ConfigError: a limit leaves no room for a call and an answer.
    """
    if max_steps < 2 or max_repeats < 1:
        raise ConfigError(
            f"max_steps={max_steps}, max_repeats={max_repeats}: an agent needs at least 2 steps, one to call a tool "
            "and one to answer, and each call at least once"
        )

    def reason_to_stop(state: MessagesState) -> str | None:
        task = this_task(state["messages"])
        made = made_calls(task)
        if any(made.count(call) > max_repeats for call in made_calls([last_answer(task)])):
            return REPEATED
        if sum(isinstance(message, AIMessage) for message in task) >= max_steps - 1:
            return TOO_MANY
        return None

    def route(state: MessagesState) -> str | list[Send]:
        answer = last_answer(state["messages"])
        if not answer.tool_calls and not answer.invalid_tool_calls:
            return END
        if not answer.tool_calls or reason_to_stop(state):
            return "refuse"
        return "tools" if in_order else [Send("tools", [call]) for call in answer.tool_calls]

    def after_tools(state: MessagesState) -> Literal["refuse", "model", "__end__"]:
        if unanswered(state["messages"]):
            return "refuse"  # a broken call stood beside good ones, or others are running still
        return "__end__" if returned_direct(state["messages"], direct) else "model"

    def after_refusal(state: MessagesState) -> Literal["model", "conclude", "__end__"]:
        if returned_direct(state["messages"], direct) and not last_answer(state["messages"]).invalid_tool_calls:
            return "__end__"
        return "conclude" if reason_to_stop(state) else "model"

    node = ToolNode(tools, handle_tool_errors=True)
    direct = {name for name, tool in node.tools_by_name.items() if tool.return_direct}
    graph = StateGraph(MessagesState)
    graph.add_node("model", model_step(bind(model, tools), system))
    graph.add_node("tools", one_by_one(node) if in_order else node)
    graph.add_node("refuse", refusal(lambda state: reason_to_stop(state) or INVALID))
    graph.add_node("conclude", model_step(bind(model, tools, "none"), system))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", route, ["tools", "refuse", END])
    graph.add_conditional_edges("tools", after_tools)
    graph.add_conditional_edges("refuse", after_refusal)
    graph.add_edge("conclude", END)
    return graph.compile(checkpointer=as_checkpointer(checkpointer), name="tool_agent")
