"""Replacing a function of vLLM by one that calls it, and the error for one that is not where it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mixquant_agents.errors import EngineStartError

__all__ = ["moved", "wrap"]

_MARK = "__mixquant__"


def moved(what: str, error: Exception | None = None) -> EngineStartError:
    """The error for a symbol of vLLM that is not where this release of the plugin expects it."""
    import vllm

    cause = f" ({error})" if error is not None else ""
    return EngineStartError(
        f"mixquant cannot hook vLLM {vllm.__version__}: {what} is not as expected{cause}; install a vLLM from 0.23 to "
        "0.32, or use policy 'exact'"
    )


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``make(original)``, once.

    Raises:
        EngineStartError: ``owner`` has no such name.
    """
    original = getattr(owner, name, None)
    if original is None:
        raise moved(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}")
    if getattr(original, _MARK, False):
        return
    wrapped = functools.wraps(original)(make(original))
    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)
