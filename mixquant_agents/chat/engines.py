"""Which engine a chat model talks to."""

from __future__ import annotations

from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.protocol import Capabilities, Engine
from mixquant_agents.records import EngineName

__all__ = [
    "ENGINE_SETTINGS",
    "assumed",
    "check_vllm_args",
    "engine_identity",
    "engine_name",
    "engine_url",
    "engine_window",
    "local_window",
    "remote_engine",
    "shared_engine",
]

ENGINE_SETTINGS = frozenset(EngineConfig.model_fields) - {"model", "policy", "seed"}
"""Settings of :class:`EngineConfig` that a chat model takes directly. Its ``seed`` is the sampling seed."""


def shared_engine(config: EngineConfig) -> Engine:
    """A handle on the vLLM engine that all chat models with these settings share; it starts with its first turn."""
    from mixquant_agents.engine.vllm import VllmEngine

    return VllmEngine.shared(config)


def remote_engine(
    model: str, *, base_url: str, api_key: str | None, policy: PrecisionPolicy | str | None, max_retries: int | None
) -> Engine:
    """An engine on the chat completions server at ``base_url``; nothing is sent yet."""
    from mixquant_agents.engine.openai import OpenAIEngine

    given = {"api_key": api_key, "policy": policy, "max_retries": max_retries}
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return OpenAIEngine(model, base_url=base_url, **named)


def check_vllm_args(config: EngineConfig) -> None:
    """Refuse names in ``vllm_args`` that the installed vLLM does not know.

    Raises:
        ConfigError: there is one, or one that this library sets itself.
    """
    if config.vllm_args:
        from mixquant_agents.engine.vllm.argument_names import check_names, installed_names

        check_names(config.vllm_args, installed_names())


def local_window(config: EngineConfig) -> int | None:
    """Tokens of the context window that a vLLM engine with these settings will have."""
    if config.max_model_len is not None:
        return config.max_model_len
    from mixquant_agents.engine.vllm.context_window import context_window

    return context_window(config)


def engine_window(engine: Any) -> int | None:
    """Tokens of an engine's context window, as far as it tells before it has started."""
    window = getattr(engine, "max_model_len", None)
    return window if isinstance(window, int) else None


def engine_url(engine: Any) -> str | None:
    """The server that an engine talks to; ``None`` for one in this process."""
    url = getattr(engine, "base_url", None)
    return url if isinstance(url, str) else None


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
