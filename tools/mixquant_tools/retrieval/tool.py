"""Search and reading as tools for the model."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import ToolInputError
from mixquant_tools.retrieval.index import DocumentIndex

__all__ = ["build_search_tool", "read_tool", "search_tool"]

_MAX_K = 20


class SearchArguments(BaseModel):
    """What to look for."""

    query: str = Field(description="words or a question to look for", min_length=1, max_length=200)
    k: int = Field(default=5, description="number of passages wanted", ge=1, le=_MAX_K)


class ReadArguments(BaseModel):
    """What to read."""

    path: str = Field(description="document path, as a search returned it", min_length=1, max_length=1_000)
    start: int = Field(default=1, description="first line, counted from 1", ge=1)
    lines: int = Field(default=60, description="number of lines", ge=1, le=400)


def search_tool(
    index: DocumentIndex, *, name: str = "search_documents", about: str = "the documents", max_chars: int = 6_000
) -> StructuredTool:
    """A tool ``search_documents(query, k)`` whose answer is numbered passages with path, lines and heading::

        [17] guide/setup.md:10-24 (Setup > Install)
        > The text of the passage.

    Its lines are marked, so that no line of a document looks like the head of another passage. A passage keeps its
    number for the life of the index, so a citation ``[17]`` means the same in every search. The tool message's artifact
    lists what was returned: ``{"number", "source", "path", "start", "end", "title", "text", "score"}``.

    Args:
        about: what is in the index, for the tool's description.
        max_chars: longest answer; passages that do not fit are left off whole and counted.
    """

    def search_documents(query: str, k: int = 5) -> tuple[str, list[dict[str, Any]]]:
        hits = index.search(query, k)
        if not hits:
            return f"Nothing found for {query[:200]!r}. Use other or fewer words.", []
        parts: list[str] = []
        shown: list[dict[str, Any]] = []
        room = max_chars
        for hit in hits:
            passage = hit.passage
            title = f" ({passage.title})" if passage.title else ""
            head = " ".join(f"[{hit.number}] {passage.source}{title}".splitlines())
            part = "\n".join((head, *(f"> {line}" for line in passage.text.splitlines())))
            if parts and len(part) > room:
                parts.append(f"({len(hits) - len(shown)} more passages left off; ask for fewer or more exactly)")
                break
            parts.append(part)
            room -= len(part)
            shown.append({"number": hit.number, "source": passage.source, "score": hit.score, **asdict(passage)})
        return "\n\n".join(parts), shown

    return make_tool(
        search_documents,
        name=name,
        description=f"Search {about}. Returns numbered passages with their file and lines.",
        arguments=SearchArguments,
        max_output=max(max_chars, 1_500) + 200,
        artifact=True,
    )


def read_tool(index: DocumentIndex, *, name: str = "read_document", max_chars: int = 12_000) -> StructuredTool:
    """A tool ``read_document(path, start, lines)`` over the documents of ``index``: nothing else can be read with
    it.
    """

    def read_document(path: str, start: int = 1, lines: int = 60) -> str:
        if "\x00" in path:
            raise ToolInputError("the path holds a NUL character")
        text = index.read(path, start, start + lines - 1)
        return "\n".join(f"{number}\t{line}" for number, line in enumerate(text.split("\n"), start=start))

    return make_tool(
        read_document,
        name=name,
        description="Read lines of one document that a search returned.",
        arguments=ReadArguments,
        max_output=max_chars,
    )


def build_search_tool(folder: str | os.PathLike[str], **settings: Any) -> StructuredTool:
    """Index the text files below ``folder`` and return ``search_documents(query, k)`` over them.

    Args:
        settings: as for :meth:`DocumentIndex.from_folder` (``semantic``, ``store``, ``suffixes``, ``progress`` …).
    """
    return search_tool(DocumentIndex.from_folder(folder, **settings))
