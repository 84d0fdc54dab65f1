"""Schemas that callers wrote as Python objects → JSON that every engine can send and render."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mixquant_agents.errors import GrammarError
from mixquant_agents.unicode import well_formed, well_formed_json

__all__ = ["plain_json", "shown"]

MAX_SHOWN = 300
"""Characters of an object in an error."""


def plain_json(value: Any, what: str) -> Any:
    """``value`` as strict JSON has it; unchanged objects are not copied.

    A number that JSON has no word for is left out of its object: pydantic writes ``"default": NaN`` of a field, and
    ``"maximum": Infinity`` says nothing.

    Args:
        what: what to call it in errors.

    Raises:
        GrammarError: it holds something that is no JSON, with where; or holds itself.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return well_formed_json(value)
    except (TypeError, ValueError, RecursionError):
        pass
    else:
        return value
    try:
        plain = _plain(value, what, "#")
        json.dumps(plain, ensure_ascii=False)  # nothing that can be walked need be shallow enough to be written
    except RecursionError:
        raise GrammarError(f"{what} holds itself, or is nested too deeply; flatten it, or write a $ref") from None
    return plain


def shown(value: object) -> str:
    """``repr`` for an error: short, and whatever the object is."""
    try:
        text = repr(value)
    except Exception:  # an object's own code may raise anything; one that nests too deeply raises, too
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _plain(value: Any, what: str, path: str) -> Any:
    if isinstance(value, Mapping):
        return {
            _key(key, what, path): _plain(inner, what, f"{path}/{key}")
            for key, inner in value.items()
            if not _endless(inner)
        }
    if isinstance(value, list | tuple):
        return [_plain(inner, what, f"{path}/{number}") for number, inner in enumerate(value)]
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, bool | int | float | None):
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise GrammarError(f"{what} holds a number at {path} that JSON has no word for: {error}") from None
        return value
    raise GrammarError(
        f"{what} holds {shown(value)} at {path}, a {type(value).__name__}, which is no JSON; write it as text"
    )


def _key(key: object, what: str, path: str) -> str:
    if isinstance(key, str):
        return well_formed(key)
    if isinstance(key, bool | int | float | None):
        return json.dumps(key)
    raise GrammarError(f"{what} has the key {shown(key)} at {path}, which is no JSON; keys are text")


def _endless(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
