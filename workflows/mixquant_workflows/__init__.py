"""LangGraph agents over a phase-aware model: tool use, retrieval, long memory; and the benchmarks that run them."""

from mixquant_workflows.checkpoints import SqliteCheckpoints
from mixquant_workflows.graphs.memory import memory_agent
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.graphs.tool import tool_agent

__all__ = ["SqliteCheckpoints", "memory_agent", "retrieval_agent", "tool_agent"]
