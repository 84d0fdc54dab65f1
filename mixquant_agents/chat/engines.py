"""Which engine a chat model talks to."""

from __future__ import annotations

from typing import Any

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.protocol import Capabilities, Engine
from mixquant_agents.records import EngineName

__all__ = ["ENGINE_SETTINGS", "assumed", "engine_name", "shared_engine"]

ENGINE_SETTINGS = frozenset(EngineConfig.model_fields) - {"model", "policy", "seed"}
"""Settings of :class:`EngineConfig` that a chat model takes directly. Its ``seed`` is the sampling seed."""


def shared_engine(config: EngineConfig) -> Engine:
    """A handle on the vLLM engine that all chat models with these settings share; it starts with its first turn."""
    from mixquant_agents.engine.vllm import VllmEngine

    return VllmEngine.shared(config)


def engine_name(engine: Any) -> str:
    """The model's name, as far as an engine tells it before it has started."""
    named = getattr(engine, "model", None) or getattr(getattr(engine, "config", None), "model", None)
    return named if isinstance(named, str) else type(engine).__name__


def assumed(engine: Any, model: str, policy: str) -> Capabilities:
    """What to record of an engine that has not said what it is, because it could not start."""
    kinds: dict[str, EngineName] = {"ScriptedEngine": "scripted", "OpenAIEngine": "openai", "PairEngine": "pair"}
    kind = kinds.get(type(engine).__name__, "vllm")
    return Capabilities(engine=kind, model=model, policy=policy)
