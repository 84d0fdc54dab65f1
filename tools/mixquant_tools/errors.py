"""What the tools raise.

::

    ToolError                the model asked for something that cannot be done (a LangChain ``ToolException``: the agent
    │                        reads it as a tool message and goes on)
    ├── ToolInputError       an argument is malformed
    ├── AccessDeniedError    the argument points outside what the tool may touch
    ├── LimitError           too long, too large, too many, too slow
    └── NotFoundError        no such file, table, note, unit…
    ToolSetupError           the programmer's settings are wrong (a ``ValueError``; never shown to a model)
    MissingDependencyError   an optional package is not installed (an ``ImportError``)
"""

from __future__ import annotations

import importlib
from typing import Any

from langchain_core.tools import ToolException

__all__ = [
    "AccessDeniedError",
    "LimitError",
    "MissingDependencyError",
    "NotFoundError",
    "ToolError",
    "ToolInputError",
    "ToolSetupError",
    "require",
]


class ToolError(ToolException):
    """The call was refused; the message says why and what to do instead."""


class ToolInputError(ToolError):
    """An argument is malformed."""


class AccessDeniedError(ToolError):
    """The argument points outside what the tool may touch."""


class LimitError(ToolError):
    """Too long, too large, too many or too slow."""


class NotFoundError(ToolError):
    """The thing named by the argument does not exist."""


class ToolSetupError(ValueError):
    """A setting given by the programmer is wrong."""


class MissingDependencyError(ImportError):
    """An optional package is not installed."""


def require(module: str, package: str, what_for: str) -> Any:
    """The imported ``module``.

    Raises:
        MissingDependencyError: naming the package to install and what needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what_for} needs the package {package!r} ({error}); install it with: pip install {package}"
        ) from error
