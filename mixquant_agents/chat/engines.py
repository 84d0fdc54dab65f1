"""Which engine a chat model talks to."""

from __future__ import annotations

from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.protocol import Capabilities, Engine
from mixquant_agents.records import EngineName

__all__ = ["ENGINE_SETTINGS", "assumed", "engine_identity", "engine_name", "shared_engine"]

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


def engine_identity(engine: Any) -> dict[str, Any]:
    """What tells this engine's answers from another's, for caches of answers."""
    config, policy = getattr(engine, "config", None), getattr(engine, "policy", None)
    found = {
        "engine": type(engine).__name__,
        "policy": policy.fingerprint if isinstance(policy, PrecisionPolicy) else None,
        "engine_config": config.fingerprint if isinstance(config, EngineConfig) else None,
        "base_url": getattr(engine, "base_url", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def assumed(engine: Any, model: str, policy: str) -> Capabilities:
    """What to record of an engine that has not said what it is, because it could not start."""
    kinds: dict[str, EngineName] = {"ScriptedEngine": "scripted", "OpenAIEngine": "openai", "VllmEngine": "vllm"}
    kind = kinds.get(type(engine).__name__, type(engine).__name__)
    return Capabilities(engine=kind, model=model, policy=policy)
