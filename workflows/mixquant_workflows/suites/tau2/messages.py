"""Conversations and tools between LangChain's types and τ²-bench's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool

from mixquant_workflows.suites.packages import tau2

__all__ = ["environment_tools", "from_tau2", "to_tau2"]

Side = Literal["assistant", "user"]


def environment_tools(environment: Any, side: Side = "assistant") -> list[BaseTool]:
    """The tools that the environment gives to the agent or the user; an artifact marks the calls that really reached
    it.

    Raises:
        ValueError: the domain has no tools for this side.
    """

    def wrap(name: str, schema: Mapping[str, Any]) -> BaseTool:
        def call(**arguments: Any) -> tuple[str, dict[str, bool]]:
            request = tau2().ToolCall(id="", name=name, arguments=arguments, requestor=side)
            response = environment.get_response(request)
            return str(response.content), {"error": bool(response.error)}

        return StructuredTool(
            name=name,
            description=schema["description"],
            args_schema=schema["parameters"],
            func=call,
            response_format="content_and_artifact",
        )

    given = environment.get_tools() if side == "assistant" else environment.get_user_tools()
    schemas = [tool.openai_schema["function"] for tool in given]
    return [wrap(schema["name"], schema) for schema in schemas]


def to_tau2(messages: Sequence[AnyMessage], side: Side = "assistant") -> list[Any]:
    """The conversation in τ²'s types; ``side`` is who wrote the AI messages. Calls that never reached the environment
    (unknown tools, refused calls) are left out, because the evaluator runs every call again and compares the
    answers."""
    package = tau2()
    speaker, kind = ("assistant", package.AssistantMessage) if side == "assistant" else ("user", package.UserMessage)
    answered = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage) and m.artifact is not None}
    converted: list[Any] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            converted.append(package.UserMessage(role="user", content=str(message.text)))
        elif isinstance(message, AIMessage):
            calls = [call for call in message.tool_calls if str(call["id"]) in answered]
            if not calls:
                if not message.tool_calls and not message.invalid_tool_calls:
                    converted.append(kind(role=speaker, content=str(message.text)))
                continue
            tool_calls = [
                package.ToolCall(id=c["id"], name=c["name"], arguments=c["args"], requestor=side) for c in calls
            ]
            converted.append(kind(role=speaker, tool_calls=tool_calls))
            for call in calls:
                answer = answered[str(call["id"])]
                error = bool(answer.artifact["error"])
                text = str(answer.content)
                converted.append(
                    package.ToolMessage(id=call["id"], role="tool", content=text, error=error, requestor=side)
                )
    return converted


def from_tau2(history: Sequence[Any]) -> list[AnyMessage]:
    """A task's earlier conversation as LangChain messages."""
    converted: list[AnyMessage] = []
    for message in history:
        if message.role == "user":
            converted.append(HumanMessage(message.content or ""))
        elif message.role == "tool":
            converted.append(ToolMessage(message.content or "", tool_call_id=message.id))
        else:
            calls = [{"name": c.name, "args": c.arguments, "id": c.id} for c in message.tool_calls or []]
            converted.append(AIMessage(message.content or "", tool_calls=calls))
    return converted
