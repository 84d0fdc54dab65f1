"""Middleware for LangChain's ``create_agent`` and for deepagents; needs the package ``langchain``."""

from __future__ import annotations

from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import hook_config
from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime

from mixquant_agents.errors import ConfigError
from mixquant_workflows.graphs.steps import INVALID, refuse_invalid_calls, this_task

__all__ = ["InvalidToolCallsMiddleware"]


class InvalidToolCallsMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Answers tool calls that are none, so that the model can make them again.

    ::

        agent = create_agent(model, tools, middleware=[InvalidToolCallsMiddleware()])

    An agent of LangChain's ends where an answer holds no valid call: a model that wrote half a JSON object, or named no
    tool, would end it with an empty answer. Here each such call gets a tool message with the reason, and the model goes
    on. Valid calls beside it run as ever.

    Args:
        max_retries: how many answers in a row that hold invalid calls alone are answered per user message; after one
            more the agent ends, as without this middleware.

    Raises:
        ConfigError: ``max_retries`` is negative.
    """

    def __init__(self, max_retries: int = 3) -> None:
        super().__init__()
        if max_retries < 0:
            raise ConfigError(f"max_retries={max_retries} is negative; give at least 0")
        self.max_retries = max_retries

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Answer the invalid calls of the model's last message."""
        messages = state["messages"]
        answer = messages[-1] if messages else None
        if not isinstance(answer, AIMessage) or not answer.invalid_tool_calls:
            return None
        update: dict[str, Any] = {"messages": refuse_invalid_calls(messages, INVALID)}
        if not answer.tool_calls and self._failures_in_a_row(state) <= self.max_retries:
            update["jump_to"] = "model"
        return update

    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """:meth:`after_model` in the event loop."""
        return self.after_model(state, runtime)

    def _failures_in_a_row(self, state: AgentState[Any]) -> int:
        count = 0
        for message in reversed(this_task(state["messages"])):
            if isinstance(message, AIMessage):
                if message.tool_calls or not message.invalid_tool_calls:
                    break
                count += 1
        return count
