"""Text that any UTF-8 writer takes: half a surrogate pair, which JSON can spell and Python can hold, cannot be sent."""

from __future__ import annotations

__all__ = ["SurrogateJoiner", "well_formed"]


def well_formed(text: str) -> str:
    """``text`` with surrogate pairs joined, and U+FFFD for each half that has no other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class SurrogateJoiner:
    """:func:`well_formed` for a text that arrives in pieces: a pair may come in two of them."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, piece: str) -> str:
        """The well-formed text of ``piece``, but for a first half at its end, which waits for the second."""
        text, self._half = self._half + piece, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return well_formed(text)

    def finish(self) -> str:
        """U+FFFD where a first half was left."""
        half, self._half = self._half, ""
        return well_formed(half)
