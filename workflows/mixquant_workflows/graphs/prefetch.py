"""Middleware by which the engine knows that a tool runs; needs the package ``langchain``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain_core.messages import ToolMessage
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime
from langgraph.types import Command

from mixquant_agents import MixQuantChatModel
from mixquant_agents.errors import ConfigError
from mixquant_workflows.graphs.growing import ResultReader, reading

__all__ = ["PrefetchMiddleware"]

_NESTED = "|"
"""What LangGraph writes between the names of nested runs."""


class PrefetchMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Reads the next prompt while tools run, and lets a thread's prefix go when its run has ended.

    ::

        model = MixQuantChatModel(keep_seconds=60)
        agent = create_agent(model, tools, middleware=[PrefetchMiddleware(model)])

    As soon as a call is known, the model reads up to where its result will stand; a tool that tells its result while it
    grows (:func:`growing_result`) has it read as it comes. What was read ahead is in the record of the turn
    (``warmed_tokens``). Synchronous agents run as without it. An agent inside another graph's run lets nothing go: the
    thread is the outer run's.

    Args:
        model: the agent's.
        step: characters by which a growing result must have grown for the engine to be asked again. While other turns
            run, the engine itself waits for larger pieces, so that few of their steps get longer.

    Raises:
        ConfigError: ``step`` is not positive.
    """

    def __init__(self, model: MixQuantChatModel, *, step: int = 1_000) -> None:
        super().__init__()
        if step < 1:
            raise ConfigError(f"step={step} is no number of characters; give at least 1")
        self._model, self._step = model, step

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Run the tool, and read ahead meanwhile."""
        call_id = request.tool_call["id"]
        if call_id is None:
            return await handler(request)
        reader = ResultReader(partial(self._model.aprefetch_result, call_id), self._step)
        reader.tell("")
        try:
            with reading(reader):
                return await handler(request)
        except GraphBubbleUp:  # an interrupt: the run goes on later
            raise
        except BaseException:  # the run ends here, and no hook behind it is called
            if (thread := _ending_thread()) is not None:
                await self._model.arelease(thread)
            raise
        finally:
            await reader.close()

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        """Run the tool."""
        return handler(request)

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Let the thread's prefix go."""
        if (thread := _ending_thread()) is not None:
            await self._model.arelease(thread)

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Let the thread's prefix go."""
        if (thread := _ending_thread()) is not None:
            self._model.release(thread)


def _ending_thread() -> str | None:
    """The thread whose run ends with this agent; ``None`` for an agent inside another graph's run, which still needs
    what is held."""
    configurable = get_config().get("configurable", {})
    thread = configurable.get("thread_id")
    inside = _NESTED in (configurable.get("checkpoint_ns") or "")
    return None if thread is None or inside else str(thread)
