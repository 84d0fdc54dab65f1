"""An engine that answers by script: ``engine``, ``turn`` (one answer as deltas), ``prompt`` (tokens, prefix cache)."""

from mixquant_agents.engine.scripted.engine import ScriptedEngine
from mixquant_agents.engine.scripted.turn import ScriptedTurn

__all__ = ["ScriptedEngine", "ScriptedTurn"]
