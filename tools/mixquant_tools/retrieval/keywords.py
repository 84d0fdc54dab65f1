"""BM25 over short texts, with identifiers split into their words."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from mixquant_tools.errors import require

__all__ = ["KeywordIndex", "words"]

_WORD = re.compile(r"[^\W_]+(?:[._'][^\W_]+)*")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_MAX_WORD = 64
# The function words of English; question words too, because agents search with whole questions.
_STOP = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be but by can did do does for from had has have he her his how i if in into is it its me
        my no not of on or our she so such that the their them then there these they this to was we were what when where
        which who whom whose why will with you your""",
    )
)


def words(text: str, stem: Any = None) -> list[str]:
    """Lower-case words without stop words; ``tool_parser`` and ``ToolParser`` also give ``tool`` and ``parser``."""
    words: list[str] = []
    for word in _WORD.findall(text):
        if len(word) > _MAX_WORD:
            continue
        lower = word.lower()
        words.append(lower)
        if not (lower == word and word.isalpha()):
            parts = [part.lower() for part in _PART.findall(word)]
            if len(parts) > 1:
                words.extend(parts)
    kept = [word for word in words if word not in _STOP]
    return stem(kept) if stem is not None else kept


def _bm25s() -> Any:
    """The package, without jax: where that is installed, bm25s has it compute once as it is imported, and jax then
    takes most of the memory of a GPU, which the agent's engine needs.

    Raises:
        MissingDependencyError: it is missing.
    """
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]  # how Python marks a module that must not be imported
    try:
        return require("bm25s", "bm25s", "keyword search")
    finally:
        if hidden:
            del sys.modules["jax"]


class KeywordIndex:
    """BM25 (bm25s, Lucene's variant, ``k1=1.5, b=0.75``) over English-stemmed words."""

    def __init__(self, texts: Sequence[str]) -> None:
        """
        Raises:
            MissingDependencyError: bm25s or PyStemmer is missing.
        """
        bm25s = _bm25s()
        self._stemmer = require("Stemmer", "PyStemmer", "keyword search").Stemmer("english")
        self._lock = threading.Lock()  # the stemmer keeps a cache and is not thread-safe
        self._index = bm25s.BM25()
        corpus = [words(text, self._stemmer.stemWords) or ["\x00"] for text in texts]
        self._index.index(corpus, show_progress=False)
        self._known: set[str] = {word for document in corpus for word in document}

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """``(text number, score)`` of the best ``k`` that share a word with the query, best first; ties in text
        order.
        """
        with self._lock:
            asked = [word for word in words(query, self._stemmer.stemWords) if word in self._known]
        if not asked:
            return []
        scores = self._index.get_scores(asked)
        best = (-scores).argsort(kind="stable")[:k]
        return [(int(item), float(scores[item])) for item in best if scores[item] > 0]
