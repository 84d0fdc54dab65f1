"""Markers in text that is still arriving."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["begins", "certain", "first"]


@lru_cache(maxsize=128)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


@lru_cache(maxsize=128)
def begins(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a character with which one of the markers begins."""
    return re.compile("|".join(sorted({re.escape(mark[0]) for mark in marks})))


def first(text: str, at: int, marks: tuple[str, ...]) -> re.Match[str] | None:
    """The first of the markers in ``text`` from ``at``."""
    return _any_of(marks).search(text, at) if marks else None


def certain(text: str, start: int, marks: tuple[str, ...]) -> int:
    """Up to where ``text`` cannot belong to one of the markers or to the one newline before it."""
    keep = len(text)
    for at in range(max(start, keep - max(map(len, marks)) + 1), keep):
        if any(mark.startswith(text[at:]) for mark in marks):
            keep = at
            break
    return keep - 1 if keep > start and text[keep - 1] == "\n" else keep
