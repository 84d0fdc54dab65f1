"""The one boundary at which our errors of a turn become LangChain's classes, too.

LangChain and deepagents recover by class: they summarise at an overflow, retry what is retryable. Each error keeps its
class of ours (``except mixquant_agents.errors.ContextOverflowError``), its text and its attributes::

    ours                          also, of langchain_core.exceptions          retryable
    ContextOverflowError          ContextOverflowError                        no
    TurnTimeoutError              ModelTimeoutError                           yes
    other RequestErrors           ModelInvalidRequestError                    no
    ModelNotFoundError            ModelNotFoundError                          no
    EngineDeadError               ModelAPIError                               yes
    RemoteEngineError             by its HTTP status; ModelConnectionError    401, 403, other 4xx: no; else yes
                                  where it has none
    other EngineStartErrors       ModelError                                  no
    EngineClosedError             ModelError                                  no
    other EngineErrors            ModelAPIError                               yes
    ConfigError and the rest      ModelError                                  no

A class that the installed langchain-core (from 1.2) does not have is left out.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions

from mixquant_agents import errors
from mixquant_agents.errors import MixQuantError, RemoteEngineError

__all__ = ["is_retryable", "langchain_error", "langchain_errors"]

_COUNTERPARTS: dict[type[MixQuantError], str] = {
    errors.ContextOverflowError: "ContextOverflowError",
    errors.TurnTimeoutError: "ModelTimeoutError",
    errors.RequestError: "ModelInvalidRequestError",
    errors.ModelNotFoundError: "ModelNotFoundError",
    errors.EngineStartError: "ModelError",
    errors.EngineClosedError: "ModelError",
    errors.EngineError: "ModelAPIError",
    MixQuantError: "ModelError",
}
"""Class of ours → name of LangChain's, for it and the classes below it that are not named."""

_STATUSES = {
    401: "ModelAuthenticationError",
    403: "ModelPermissionDeniedError",
    404: "ModelNotFoundError",
    408: "ModelTimeoutError",
    429: "ModelRateLimitError",
}
"""HTTP status of a remote engine → name of LangChain's class."""


_RETRYABLE = frozenset({"ModelAPIError", "ModelConnectionError", "ModelRateLimitError", "ModelTimeoutError"})


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Errors of ours leave the block as LangChain's, too."""
    try:
        yield
    except MixQuantError as error:
        raise langchain_error(error) from error.__cause__


def langchain_error(error: MixQuantError) -> MixQuantError:
    """A copy of ``error`` that is also of LangChain's class for it; itself where it is one, or where there is none."""
    if isinstance(error, exceptions.LangChainException):
        return error
    langchain_class: Any = getattr(exceptions, _counterpart(error), None)
    if langchain_class is None:
        return error
    return _raised_as(copy.copy(error), langchain_class).with_traceback(error.__traceback__)


def is_retryable(error: MixQuantError) -> bool:
    """Whether the same request may succeed when it is sent again."""
    return _counterpart(error) in _RETRYABLE


def _counterpart(error: MixQuantError) -> str:
    if isinstance(error, RemoteEngineError):
        return _remote_counterpart(error.status)
    return next(name for own_class in type(error).__mro__ if (name := _COUNTERPARTS.get(own_class)) is not None)


def _remote_counterpart(status: int | None) -> str:
    if status is None:
        return "ModelConnectionError"
    return _STATUSES.get(status, "ModelAPIError" if status >= 500 else "ModelInvalidRequestError")


def _raised_as(error: MixQuantError, langchain_class: Any) -> MixQuantError:
    own_class: Any = type(error)
    error.__class__ = _both(own_class, langchain_class)  # several of ours cannot be made from args alone
    return error


@functools.cache
def _both(own_class: Any, langchain_class: Any) -> Any:
    """The class of both, under our name."""
    namespace = {"__module__": own_class.__module__, "__doc__": own_class.__doc__}
    return type(own_class.__name__, (_BothError, own_class, langchain_class), namespace)


class _BothError(Exception):
    """No module holds the classes made above, so their instances are copied and pickled by what they are made of."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, own_class, langchain_class = type(self).__bases__
        plain: tuple[Any, ...] = super().__reduce__()  # type: ignore[assignment]  # typeshed allows a name here
        return _restored, (own_class, langchain_class, *plain[1:])


def _restored(
    own_class: type[MixQuantError],
    langchain_class: type[Exception],
    args: tuple[Any, ...],
    state: dict[str, Any] | None = None,
) -> MixQuantError:
    error = own_class(*args)
    error.__dict__.update(state or {})
    return _raised_as(error, langchain_class)
