"""The vLLM engine: one ``AsyncLLM`` in the agent's own process, no server, no port.

Nothing heavy is imported until an engine starts; ``import mixquant_agents.engine.vllm`` loads neither torch nor vllm.
"""

from __future__ import annotations

from mixquant_agents.engine.vllm.engine import EngineStats, VllmEngine
from mixquant_agents.engine.vllm.shared import close_all

__all__ = ["EngineStats", "VllmEngine", "close_all"]
