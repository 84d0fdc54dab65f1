"""Search over documents and notes: BM25, MiniLM vectors, reciprocal-rank fusion.

::

    index = DocumentIndex.from_folder("docs")          # BM25; semantic=True adds vectors
    tool = search_tool(index)                          # search_documents(query, k)
    tool.invoke({"query": "tool parsers", "k": 3})
"""

from mixquant_tools.retrieval.index import DocumentIndex, Hit, fuse
from mixquant_tools.retrieval.notes import NoteBook, note_tools
from mixquant_tools.retrieval.passages import Document, Passage, read_folder, split
from mixquant_tools.retrieval.tool import build_search_tool, read_tool, search_tool

__all__ = [
    "Document",
    "DocumentIndex",
    "Hit",
    "NoteBook",
    "Passage",
    "build_search_tool",
    "fuse",
    "note_tools",
    "read_folder",
    "read_tool",
    "search_tool",
    "split",
]
