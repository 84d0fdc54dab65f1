"""The file tools the model sees."""

from __future__ import annotations

import time
from itertools import islice

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import NotFoundError, ToolError, ToolInputError
from mixquant_tools.files import Folder

__all__ = ["file_tools"]

_MAX_TEXT = 200_000
_MAX_HITS = 100


class ListArguments(BaseModel):
    """Where to look."""

    folder: str = Field(default="", description="folder to list; empty for all", max_length=1_000)


class ReadArguments(BaseModel):
    """What to read."""

    path: str = Field(description="for example notes/today.txt", max_length=1_000)
    start: int = Field(default=1, description="first line, counted from 1", ge=1)
    lines: int = Field(default=200, description="number of lines", ge=1, le=1_000)


class WriteArguments(BaseModel):
    """What to write."""

    path: str = Field(description="for example notes/today.txt", max_length=1_000)
    text: str = Field(description="the whole content", max_length=_MAX_TEXT)


class ReplaceArguments(BaseModel):
    """What to change."""

    path: str = Field(description="the file", max_length=1_000)
    old: str = Field(description="text that occurs exactly once in the file", min_length=1, max_length=_MAX_TEXT)
    new: str = Field(description="text to put in its place", max_length=_MAX_TEXT)


class FindArguments(BaseModel):
    """What to find."""

    text: str = Field(description="plain text to look for; case does not matter", min_length=1, max_length=500)
    folder: str = Field(default="", description="folder to search; empty for all", max_length=1_000)


def file_tools(folder: Folder) -> list[BaseTool]:
    """``list_files``, ``read_file``, ``find_in_files`` and, in a writable folder, ``write_file`` and
    ``replace_in_file``."""

    def list_files(folder_path: str) -> str:
        entries = folder.entries(folder_path)
        return "\n".join(f"{path} ({size} bytes)" for path, size in entries) or "(no files)"

    def read_file(path: str, start: int = 1, lines: int = 200) -> str:
        content = folder.read(path).splitlines()
        if not content:
            return "(the file is empty)"
        if start > len(content):
            raise NotFoundError(f"{path} has {len(content)} lines, not {start}")
        shown = content[start - 1 : start - 1 + lines]
        rest = len(content) - (start - 1 + len(shown))
        more = f"\n({rest} more lines; read on from line {start + len(shown)})" if rest else ""
        return "\n".join(f"{number}\t{line}" for number, line in enumerate(shown, start=start)) + more

    def find_in_files(text: str, folder_path: str) -> str:
        deadline = time.monotonic() + folder.seconds
        lowered = text.lower()
        lines: list[str] = []
        for path, _ in folder.entries(folder_path):
            if time.monotonic() > deadline:
                lines.append(f"(stopped after {folder.seconds:g} s before {path}; name a folder further down)")
                break
            try:
                content = folder.read(path)
            except ToolError:  # binary, too large, or gone meanwhile: not what is looked for
                continue
            if lowered not in content.lower():
                continue
            hits = (
                f"{path}:{n}: {line[:200]}" for n, line in enumerate(content.splitlines(), 1) if lowered in line.lower()
            )
            lines.extend(islice(hits, _MAX_HITS + 1 - len(lines)))
            if len(lines) > _MAX_HITS:
                return "\n".join([*lines[:_MAX_HITS], "(more left off; look for a longer text)"])
        return "\n".join(lines) or f"{text[:80]!r} does not occur"

    def write_file(path: str, text: str) -> str:
        return f"Wrote {folder.write(path, text)} bytes to {path}."

    def replace_in_file(path: str, old: str, new: str) -> str:
        content = folder.read(path)
        count = content.count(old)
        if count != 1:
            raise ToolInputError(f"the old text occurs {count} times in {path}; give a text that occurs once")
        folder.write(path, content.replace(old, new))
        return f"Replaced in {path}."

    tools: list[BaseTool] = [
        make_tool(
            lambda folder="": list_files(folder),
            name="list_files",
            description="List files and their sizes.",
            arguments=ListArguments,
        ),
        make_tool(
            read_file, name="read_file", description="Read a text file, with line numbers.", arguments=ReadArguments
        ),
        make_tool(
            lambda text, folder="": find_in_files(text, folder),
            name="find_in_files",
            description="Find lines that contain a text.",
            arguments=FindArguments,
        ),
    ]
    if folder.writable:
        tools += [
            make_tool(write_file, name="write_file", description="Write a text file.", arguments=WriteArguments),
            make_tool(
                replace_in_file,
                name="replace_in_file",
                description="Replace one piece of text in a file.",
                arguments=ReplaceArguments,
            ),
        ]
    return tools
