"""The vLLM engine: one ``AsyncLLM`` in the agent's own process, no server.

Nothing heavy is imported until an engine starts; ``import mixquant_agents.engine.vllm`` loads neither torch nor vllm.

Reading order:

1. ``engine``: ``VllmEngine``, the seam's implementation; a turn crosses from the caller's loop to the owner's and back.
2. ``registry``: which engines exist; shared, counted, replaced when dead. ``startup``: a start that can be cancelled.
3. ``core``: ``RunningEngine``, the thread that owns ``AsyncLLM``; start, turn, end.
4. On the way in: ``args``, ``argument_names`` and ``checkpoint`` (what vLLM is started with), ``prompts``, ``render``
   and ``chat_format`` (messages → tokens), ``sampling``, ``grammar`` (what an answer may be).
5. On the way out: ``generate`` (vLLM's outputs → deltas), ``row_counts``, ``parsers``.
6. When something goes wrong: ``errors`` (vLLM's → ours), ``liveness``, ``child_process``, ``leftovers``.
"""

from __future__ import annotations

from mixquant_agents.engine.vllm.engine import EngineStats, VllmEngine
from mixquant_agents.engine.vllm.registry import close_all

__all__ = ["EngineStats", "VllmEngine", "close_all"]
