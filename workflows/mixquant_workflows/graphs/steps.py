"""What the graphs share: a model step, and reading the message list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import MessagesState
from langgraph.prebuilt import ToolNode

__all__ = ["bind", "last_answer", "made_calls", "model_step", "one_by_one", "refuse_calls", "this_task"]


def bind(model: BaseChatModel, tools: Sequence[Any], choice: str = "auto") -> Runnable[LanguageModelInput, AIMessage]:
    """``model`` with ``tools``. Every step of a graph binds the same tools and only ``tool_choice`` differs: tools
    stand at the beginning of the prompt, and another list there would make the prefix cache miss."""
    return model.bind_tools(tools, tool_choice=choice) if tools else model


def model_step(bound: Runnable[LanguageModelInput, AIMessage], system: str) -> Runnable[MessagesState, dict[str, Any]]:
    """A node that calls the model on the system prompt and all messages; runs sync and async."""
    prompt: Runnable[MessagesState, list[AnyMessage]] = RunnableLambda(
        lambda state: [SystemMessage(system), *state["messages"]] if system else list(state["messages"])
    )
    return prompt | bound | RunnableLambda(lambda message: {"messages": [message]})


def one_by_one(tools: ToolNode) -> Runnable[MessagesState, Any]:
    """A node that runs the calls of one message in their order, each after the one before has ended. ``tools`` itself
    runs them at the same time, so that ``cd`` and a ``mkdir`` meant for the new folder race."""

    def steps(state: MessagesState) -> list[dict[str, Any]]:
        *earlier, answer = state["messages"]
        calls = answer.tool_calls if isinstance(answer, AIMessage) else []
        return [{**state, "messages": [*earlier, answer.model_copy(update={"tool_calls": [call]})]} for call in calls]

    def joined(results: list[Any]) -> Any:
        updates = [update for result in results for update in (result if isinstance(result, list) else [result])]
        if all(isinstance(update, dict) for update in updates):
            return {"messages": [message for update in updates for message in update["messages"]]}
        return updates  # a tool returned a command: LangGraph takes the list

    def run(state: MessagesState, config: RunnableConfig) -> Any:
        return joined([tools.invoke(step, config) for step in steps(state)])

    async def arun(state: MessagesState, config: RunnableConfig) -> Any:
        return joined([await tools.ainvoke(step, config) for step in steps(state)])

    return RunnableLambda(run, arun)


def this_task(messages: Sequence[AnyMessage]) -> Sequence[AnyMessage]:
    """The messages since the user last spoke, that one included (a graph's own messages carry a ``name`` and do not
    count)."""
    for place in range(len(messages) - 1, -1, -1):
        if isinstance(messages[place], HumanMessage) and not messages[place].name:
            return messages[place:]
    return messages


def last_answer(messages: Sequence[AnyMessage]) -> AIMessage:
    """The model's last message.

    Raises:
        ValueError: there is none.
    """
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return message
    raise ValueError("the model has not answered yet")


def made_calls(messages: Sequence[AnyMessage]) -> list[tuple[str, str]]:
    """``(name, arguments)`` of every tool call, in order; arguments in a form that can be compared."""
    return [
        (call["name"], repr(sorted(call["args"].items())))
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    ]


def refuse_calls(message: AIMessage, reason: str) -> list[ToolMessage]:
    """One tool message for every call of ``message`` that will not run, so that the conversation stays well-formed."""
    calls: list[tuple[str | None, str | None]] = [(call["id"], call["name"]) for call in message.tool_calls]
    calls += [(call["id"], call["name"]) for call in message.invalid_tool_calls]
    return [
        ToolMessage(f"error: {reason}", tool_call_id=id_ or "invalid", name=name or "invalid", status="error")
        for id_, name in calls
    ]
