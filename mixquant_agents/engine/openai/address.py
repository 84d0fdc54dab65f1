"""Addresses as messages show them."""

from __future__ import annotations

import re

__all__ = ["without_login"]


def without_login(url: str) -> str:
    """``url`` without a user's name and password."""
    return re.sub(r"//[^/@]*@", "//", url)
