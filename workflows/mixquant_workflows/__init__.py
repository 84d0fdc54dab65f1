"""LangGraph agents over a phase-aware model: tool use, retrieval, long memory; and the benchmarks that run them.

``InvalidToolCallsMiddleware`` is for agents of LangChain's own making, and needs the package ``langchain``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixquant_agents.errors import MissingDependencyError
from mixquant_workflows.checkpoints import SqliteCheckpoints
from mixquant_workflows.graphs.memory import memory_agent
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.graphs.tool import tool_agent

if TYPE_CHECKING:
    from mixquant_workflows.graphs.middleware import InvalidToolCallsMiddleware

__all__ = ["InvalidToolCallsMiddleware", "SqliteCheckpoints", "memory_agent", "retrieval_agent", "tool_agent"]


def __getattr__(name: str) -> Any:
    if name != "InvalidToolCallsMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from mixquant_workflows.graphs.middleware import InvalidToolCallsMiddleware
    except ImportError as error:
        raise MissingDependencyError(
            "InvalidToolCallsMiddleware needs the package langchain; install mixquant-agents[langchain]"
        ) from error
    return InvalidToolCallsMiddleware
