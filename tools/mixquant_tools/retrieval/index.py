"""An index over passages: BM25 always, MiniLM vectors on demand, both joined by reciprocal-rank fusion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mixquant_tools.errors import NotFoundError, ToolSetupError
from mixquant_tools.retrieval.keywords import KeywordIndex
from mixquant_tools.retrieval.passages import TEXT_SUFFIXES, Document, Passage, read_folder, split

__all__ = ["DocumentIndex", "Hit", "Mode", "Progress", "fuse"]

Mode = Literal["auto", "keywords", "vectors", "fused"]
Progress = Callable[[str, int, int], None]
"""Called as ``progress(step, done, total)`` while an index is built."""

MAX_QUERY_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found.

    Attributes:
        score: BM25, cosine similarity, or sum of reciprocal ranks: compare only within one answer.
        number: of the passage in its index, from 1; stable for the life of the index.
    """

    passage: Passage
    score: float
    number: int


def fuse(rankings: Iterable[Sequence[int]], constant: int = 60) -> list[tuple[int, float]]:
    """Reciprocal-rank fusion (Cormack et al., SIGIR 2009): each ranking adds ``1 / (constant + rank)``, ranks from 1.

    Returns:
        ``(item, score)``, best first; ties in item order.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1.0 / (constant + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _valid(document: Document) -> Document:
    """The document without lone surrogates, which neither a tokenizer nor a file takes."""
    return replace(document, **{field: _encodable(value) for field, value in asdict(document).items()})


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class DocumentIndex:
    """Passages of documents, searchable. Built once, read-only afterwards, safe to share between threads.

    Attributes:
        documents: number of documents.
        passages: all passages, in document order.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        *,
        semantic: bool = False,
        store: str | os.PathLike[str] | None = None,
        max_chars: int = 1_200,
        progress: Progress | None = None,
    ) -> None:
        """Cut, count and, if asked, embed.

        Args:
            semantic: also embed every passage (MiniLM, about 200 passages a second on two cores).
            store: folder of a LanceDB table that keeps the vectors; a later build embeds only what is new. ``None``
                keeps them in memory.
            max_chars: longest passage, in characters.
            progress: called while building.

        Raises:
            ToolSetupError: there is nothing to index.
            MissingDependencyError: bm25s (or, for vectors, onnxruntime, tokenizers, the model, lancedb) is missing.
        """
        report = progress or (lambda step, done, total: None)
        self._lines: dict[str, list[str]] = {}
        self.passages: list[Passage] = []
        for count, document in enumerate(map(_valid, documents), start=1):
            self._lines[document.path] = document.text.splitlines()
            self.passages.extend(split(document, max_chars=max_chars))
            report("reading", count, 0)
        self.documents = len(self._lines)
        if not self.passages:
            raise ToolSetupError("there is no text to index; check the folder and its file endings")
        texts = [passage.indexed for passage in self.passages]
        report("counting words", 0, len(texts))
        self._keywords = KeywordIndex(texts)
        report("counting words", len(texts), len(texts))
        self._vectors: Any = None
        if semantic or store is not None:
            from mixquant_tools.retrieval.vectors import open_vectors

            self._vectors = open_vectors(texts, store, lambda done, total: report("embedding", done, total))

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        suffixes: Iterable[str] = TEXT_SUFFIXES,
        max_files: int = 20_000,
        max_total_bytes: int = 512 * 2**20,
        **settings: Any,
    ) -> DocumentIndex:
        """Index the text files below ``folder``; see :func:`read_folder` for what is taken, and the constructor for the
        rest.
        """
        documents = read_folder(folder, suffixes=suffixes, max_files=max_files, max_total_bytes=max_total_bytes)
        return cls(documents, **settings)

    @property
    def semantic(self) -> bool:
        """Whether there are vectors."""
        return self._vectors is not None

    def search(self, query: str, k: int = 5, mode: Mode = "auto") -> list[Hit]:
        """The ``k`` best passages, best first; fewer (or none) if nothing else shares a word with the query.

        Args:
            mode: ``"auto"`` fuses where there are vectors, and takes keywords alone where there are none.

        Raises:
            ToolSetupError: vectors are asked for, but the index was built without.
        """
        if k < 1:
            return []
        query = query[:MAX_QUERY_CHARS]
        if mode == "auto":
            mode = "fused" if self.semantic else "keywords"
        if mode in ("vectors", "fused") and not self.semantic:
            raise ToolSetupError(f"mode={mode!r} needs an index built with semantic=True")
        if mode == "keywords":
            ranked = self._keywords.search(query, k)
        elif mode == "vectors":
            ranked = self._vectors.search(query, k)
        else:
            deep = max(50, 4 * k)
            both = (self._keywords.search(query, deep), self._vectors.search(query, deep))
            ranked = fuse([item for item, _ in ranking] for ranking in both)[:k]
        return [Hit(self.passages[item], score, item + 1) for item, score in ranked]

    def paths(self) -> list[str]:
        """Paths of all documents."""
        return list(self._lines)

    def read(self, path: str, start: int = 1, end: int | None = None) -> str:
        """Lines ``start`` to ``end`` (from 1, both included) of one indexed document.

        Raises:
            NotFoundError: no indexed document has this path, or it has no such line.
        """
        lines = self._lines.get(path)
        if lines is None:
            raise NotFoundError(f"no document {path[:200]!r}; use a path that a search returned")
        if not 1 <= start <= len(lines):
            raise NotFoundError(f"{path} has lines 1 to {len(lines)}, not {start}")
        return "\n".join(lines[start - 1 : end])
