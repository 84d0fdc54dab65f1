"""LangGraph agents over a phase-aware model: tool use, retrieval, long memory; and the benchmarks that run them.

The two middlewares are for agents of LangChain's own making, and need the package ``langchain``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mixquant_agents.errors import MissingDependencyError
from mixquant_workflows.checkpoints import SqliteCheckpoints
from mixquant_workflows.graphs.growing import growing_result
from mixquant_workflows.graphs.memory import memory_agent
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.graphs.tool import tool_agent

if TYPE_CHECKING:
    from mixquant_workflows.graphs.middleware import InvalidToolCallsMiddleware
    from mixquant_workflows.graphs.prefetch import PrefetchMiddleware

__all__ = [
    "InvalidToolCallsMiddleware",
    "PrefetchMiddleware",
    "SqliteCheckpoints",
    "growing_result",
    "memory_agent",
    "retrieval_agent",
    "tool_agent",
]

_MIDDLEWARE = {"InvalidToolCallsMiddleware": "middleware", "PrefetchMiddleware": "prefetch"}


def __getattr__(name: str) -> Any:
    if name not in _MIDDLEWARE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"mixquant_workflows.graphs.{_MIDDLEWARE[name]}")
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} needs the package langchain; install mixquant-agents[langchain]"
        ) from error
    return getattr(module, name)
