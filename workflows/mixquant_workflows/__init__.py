"""LangGraph agents over a phase-aware model: tool use, retrieval, long memory; and the benchmarks that run them.

Public names load on first use: the command line imports this package for its commands, long before any of them needs
LangGraph. The two middlewares are for agents of LangChain's own making, and need the package ``langchain``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mixquant_agents.errors import MissingDependencyError

if TYPE_CHECKING:
    from mixquant_workflows.checkpoints import SqliteCheckpoints
    from mixquant_workflows.graphs.growing import growing_result
    from mixquant_workflows.graphs.memory import memory_agent
    from mixquant_workflows.graphs.middleware import InvalidToolCallsMiddleware
    from mixquant_workflows.graphs.prefetch import PrefetchMiddleware
    from mixquant_workflows.graphs.retrieval import retrieval_agent
    from mixquant_workflows.graphs.tool import tool_agent

_HOMES = {
    "InvalidToolCallsMiddleware": "mixquant_workflows.graphs.middleware",
    "PrefetchMiddleware": "mixquant_workflows.graphs.prefetch",
    "SqliteCheckpoints": "mixquant_workflows.checkpoints",
    "growing_result": "mixquant_workflows.graphs.growing",
    "memory_agent": "mixquant_workflows.graphs.memory",
    "retrieval_agent": "mixquant_workflows.graphs.retrieval",
    "tool_agent": "mixquant_workflows.graphs.tool",
}

_NEEDS_LANGCHAIN = ("InvalidToolCallsMiddleware", "PrefetchMiddleware")

__all__ = [
    "InvalidToolCallsMiddleware",
    "PrefetchMiddleware",
    "SqliteCheckpoints",
    "growing_result",
    "memory_agent",
    "retrieval_agent",
    "tool_agent",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOMES[name])
    except ImportError as error:
        if name not in _NEEDS_LANGCHAIN:
            raise
        raise MissingDependencyError(
            f"{name} needs the package langchain; install mixquant-agents[langchain]"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    own = (name for name, value in globals().items() if name.startswith("__") or isinstance(value, ModuleType))
    return sorted({*__all__, *own} - {"importlib"})
