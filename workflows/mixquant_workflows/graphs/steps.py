"""What the graphs share: a model step, and reading the message list."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import MessagesState
from langgraph.prebuilt import ToolNode

__all__ = [
    "INVALID",
    "OWN",
    "TOO_MANY",
    "answered",
    "bind",
    "calling",
    "last_answer",
    "made_calls",
    "model_step",
    "one_by_one",
    "refusal",
    "refuse_calls",
    "refuse_invalid_calls",
    "returned_direct",
    "this_task",
    "unanswered",
]

State = TypeVar("State")

OWN = "citation_check"
"""Name of the messages that a graph itself writes in the user's place."""
INVALID = "the call is not valid JSON of the form the tool wants; make it again"
TOO_MANY = "no more tool calls are allowed. Answer with what you know"


def bind(model: BaseChatModel, tools: Sequence[Any], choice: str = "auto") -> Runnable[LanguageModelInput, AIMessage]:
    """``model`` with ``tools``. Every step of a graph binds the same tools and only ``tool_choice`` differs: tools
    stand at the beginning of the prompt, and another list there would make the prefix cache miss."""
    return model.bind_tools(tools, tool_choice=choice) if tools else model


def calling(
    bound: Runnable[LanguageModelInput, AIMessage],
    prompt: Callable[[State], list[AnyMessage]],
    update: Callable[[State, AIMessage], dict[str, Any]] = lambda state, message: {"messages": [message]},
) -> Runnable[State, dict[str, Any]]:
    """A node that calls the model on ``prompt(state)``; its answer goes through ``update``. Runs sync and async.

    One piece with a form of its own for each: in a chain, plain functions around the model would each go through a
    thread when run async.
    """

    def run(state: State, config: RunnableConfig) -> dict[str, Any]:
        return update(state, bound.invoke(prompt(state), config))

    async def arun(state: State, config: RunnableConfig) -> dict[str, Any]:
        return update(state, await bound.ainvoke(prompt(state), config))

    return RunnableLambda(run, arun)


def model_step(bound: Runnable[LanguageModelInput, AIMessage], system: str) -> Runnable[MessagesState, dict[str, Any]]:
    """A node that calls the model on the system prompt and all messages."""
    return calling(bound, lambda state: [*([SystemMessage(system)] if system else []), *answered(state["messages"])])


def answered(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """``messages``, with an answer to each call that never got one: its run was killed, and the user spoke on."""
    complete: list[AnyMessage] = []
    turn_start = 0
    for index, message in enumerate(messages):
        if isinstance(message, HumanMessage):
            turn, turn_start = messages[turn_start:index], index
            if any(isinstance(earlier, AIMessage) for earlier in turn):
                complete += refuse_calls(turn, "the call did not come to an end")
        complete.append(message)
    return complete


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
    """The messages since the user last spoke, that one included."""
    for index in range(len(messages) - 1, -1, -1):
        if isinstance(messages[index], HumanMessage) and messages[index].name != OWN:
            return messages[index:]
    return messages


def returned_direct(messages: Sequence[AnyMessage], direct: Collection[str]) -> bool:
    """Whether the results of the model's last calls are the answer: every call is of one of the tools ``direct`` (whose
    ``return_direct`` is set), and none failed."""
    answer = last_answer(messages)
    results = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage)}
    return bool(answer.tool_calls) and all(
        call["name"] in direct and (result := results.get(call["id"] or "")) is not None and result.status != "error"
        for call in answer.tool_calls
    )


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


def unanswered(messages: Sequence[AnyMessage]) -> list[tuple[str, str]]:
    """``(id, name)`` of the calls of the model's last message that have no tool message yet, invalid ones included."""
    return [(call.id, call.name) for call in _unanswered_calls(messages)]


def refuse_calls(messages: Sequence[AnyMessage], reason: str) -> list[ToolMessage]:
    """One tool message for every call that will not run, so that the conversation stays well-formed.

    An invalid call's own reason takes the place of :data:`INVALID`.
    """
    return [_refused(call, reason) for call in _unanswered_calls(messages)]


def refuse_invalid_calls(messages: Sequence[AnyMessage], reason: str) -> list[ToolMessage]:
    """:func:`refuse_calls` for the invalid calls alone, beside valid ones that will run."""
    return [_refused(call, reason) for call in _unanswered_calls(messages) if not call.valid]


class _Call(NamedTuple):
    id: str
    name: str
    valid: bool
    error: str | None


def _unanswered_calls(messages: Sequence[AnyMessage]) -> list[_Call]:
    answer = last_answer(messages)
    later = messages[max(index for index, message in enumerate(messages) if message is answer) + 1 :]
    answered_ids = {message.tool_call_id for message in later if isinstance(message, ToolMessage)}
    calls = [_Call(call["id"] or "invalid", call["name"], True, None) for call in answer.tool_calls]
    calls += [
        _Call(call["id"] or "invalid", call["name"] or "invalid", False, call["error"])
        for call in answer.invalid_tool_calls
    ]
    return [call for call in calls if call.id not in answered_ids]


def _refused(call: _Call, reason: str) -> ToolMessage:
    if reason == INVALID and call.error:
        reason = f"the call is not valid ({call.error}); make it again"
    return ToolMessage(f"error: {reason}", tool_call_id=call.id, name=call.name, status="error")


def refusal(reason: Callable[[Any], str]) -> Any:
    """A node, a function of the state, that answers every call that did not run with ``reason(state)``: also the broken
    one beside good ones. LangGraph's own type of a function that is a node cannot be named."""
    return lambda state: {"messages": refuse_calls(state["messages"], reason(state))}
