"""Which engine a chat model talks to."""

from __future__ import annotations

from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import Engine

__all__ = [
    "ENGINE_SETTINGS",
    "check_vllm_args",
    "engine_identity",
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


def engine_identity(engine: Engine) -> dict[str, Any]:
    """What tells this engine's answers from another's, for caches of answers."""
    info = engine.info
    parts = {"engine": info.engine, "fingerprint": info.fingerprint, "base_url": info.base_url}
    return {name: value for name, value in parts.items() if value is not None}
