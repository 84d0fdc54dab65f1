"""LangGraph agents on a local model that reads in low precision and writes exactly.

Public names load on first use: importing this package loads neither torch, vllm nor langchain (vLLM imports it in
each of its processes).
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mixquant_agents._version import __version__ as __version__

if TYPE_CHECKING:
    from mixquant_agents.chat.model import MixQuantChatModel
    from mixquant_agents.chat.provider import register_provider
    from mixquant_agents.config import EngineConfig, PrecisionPolicy
    from mixquant_agents.engine.openai import OpenAIEngine
    from mixquant_agents.engine.pair import PairEngine
    from mixquant_agents.engine.scripted import ScriptedEngine
    from mixquant_agents.engine.vllm import VllmEngine
    from mixquant_agents.errors import MixQuantError
    from mixquant_agents.records import TurnRecord
    from mixquant_agents.telemetry.store import TurnStore

_HOMES = {
    "EngineConfig": "mixquant_agents.config",
    "MixQuantChatModel": "mixquant_agents.chat.model",
    "MixQuantError": "mixquant_agents.errors",
    "OpenAIEngine": "mixquant_agents.engine.openai",
    "PairEngine": "mixquant_agents.engine.pair",
    "PrecisionPolicy": "mixquant_agents.config",
    "ScriptedEngine": "mixquant_agents.engine.scripted",
    "TurnRecord": "mixquant_agents.records",
    "TurnStore": "mixquant_agents.telemetry.store",
    "VllmEngine": "mixquant_agents.engine.vllm",
    "register_provider": "mixquant_agents.chat.provider",
}

__all__ = [
    "EngineConfig",
    "MixQuantChatModel",
    "MixQuantError",
    "OpenAIEngine",
    "PairEngine",
    "PrecisionPolicy",
    "ScriptedEngine",
    "TurnRecord",
    "TurnStore",
    "VllmEngine",
    "register_provider",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    own = (name for name, value in globals().items() if name.startswith("__") or isinstance(value, ModuleType))
    return sorted({*__all__, *own} - {"importlib"})
