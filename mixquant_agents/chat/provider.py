"""``init_chat_model("mixquant:MODEL")``: LangChain's own way to name a model by a text.

LangChain keeps its providers in one table and has no public way to add to it. So our row is put into that table, and
everything behind it is LangChain's: settings, configurable fields, deepagents' names of models.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from langchain_core.language_models import BaseChatModel

__all__ = ["PROVIDER", "register_provider"]

PROVIDER = "mixquant"


def register_provider() -> bool:
    """Make ``"mixquant:MODEL"`` a name that ``langchain.chat_models.init_chat_model`` takes. Idempotent; done by itself
    when :class:`MixQuantChatModel` is imported.

    Returns:
        Whether it does now: ``False`` where ``langchain`` is not installed, or keeps its providers in another way.
    """
    if importlib.util.find_spec("langchain") is None:
        return False
    try:
        from langchain.chat_models.base import _BUILTIN_PROVIDERS
    except ImportError:
        return False
    if not isinstance(_BUILTIN_PROVIDERS, dict):
        return False
    _BUILTIN_PROVIDERS.setdefault(PROVIDER, ("mixquant_agents", "MixQuantChatModel", _made))
    return True


def _made(cls: type[BaseChatModel], **settings: Any) -> BaseChatModel:
    """What LangChain calls with the class and the settings."""
    return cls(**settings)
