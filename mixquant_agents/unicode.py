"""Python strings may hold half of a surrogate pair (from a cut-off emoji, a broken file name); no encoding does.

Such a half would fail the tokenizer or the HTTP client, and with it every later turn of the thread. It becomes U+FFFD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SurrogateJoiner", "has_lone_surrogate", "well_formed", "well_formed_json"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def well_formed(text: str) -> str:
    """``text`` with each pair of surrogates joined and each lone one replaced by U+FFFD; all else unchanged."""
    if not has_lone_surrogate(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def has_lone_surrogate(value: object) -> bool:
    """Whether a string in ``value`` (a string, or dicts and sequences of them) cannot be encoded."""
    if isinstance(value, str):
        if value.isascii():
            return False
        try:
            value.encode()
        except UnicodeEncodeError:
            return True
        return False
    if isinstance(value, Mapping):
        return any(has_lone_surrogate(key) or has_lone_surrogate(inner) for key, inner in value.items())
    return isinstance(value, list | tuple) and any(map(has_lone_surrogate, value))


def well_formed_json(value: Any) -> Any:
    """A JSON value with :func:`well_formed` strings and keys; unchanged objects are not copied."""
    if isinstance(value, str):
        return well_formed(value)
    if not has_lone_surrogate(value):
        return value
    if isinstance(value, Mapping):
        return {well_formed_json(key): well_formed_json(inner) for key, inner in value.items()}
    return [well_formed_json(inner) for inner in value]


class SurrogateJoiner:
    """:func:`well_formed` for a text that comes in pieces: a pair may be cut in two by a piece's end."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def feed(self, piece: str) -> str:
        """What is certain of the text so far."""
        text = self._half + piece
        if text.isascii():
            return text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return well_formed(text[:-1] if self._half else text)

    def finish(self) -> str:
        """What was held back: a half that stays one."""
        half, self._half = self._half, ""
        return REPLACEMENT if half else ""
