"""The tools of an MCP server, through a thin client on ``mcp`` 2.

::

    async with mcp_tools(StdioServerParameters(command="my-server")) as tools:
        graph = tool_agent(model, tools)

The server is trusted to run (you name its command or address), its words are not: descriptions and answers are cleaned
and cut like those of any tool, and an answer that does not come in time is an error the model can act on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from mixquant_tools.base import clean, failure_text, presented
from mixquant_tools.errors import LimitError, ToolError, ToolSetupError, require

__all__ = ["mcp_tools"]

_MAX_TOOLS = 200
_MAX_PAGES = 50
_MAX_SCHEMA = 20_000
_MAX_TOLD = 400_000
"""Characters of all descriptions and arguments together: they stand in every prompt."""
_MAX_PARTS = 1_000
_MAX_NAME = 64


@asynccontextmanager
async def mcp_tools(
    server: Any, *, seconds: float = 30.0, max_output: int = 20_000, prefix: str = ""
) -> AsyncIterator[list[BaseTool]]:
    """Connect and yield the server's tools; the connection ends with the context. The tools are async only.

    What goes wrong while connecting is raised as it is, not within groups of the SDK's tasks; so is what the body of
    the context raises.

    Args:
        server: a URL (streamable HTTP), ``mcp.StdioServerParameters``, a transport, or an in-process server.
        seconds: longest wait for one answer.
        max_output: longest answer, in characters.
        prefix: put before every name, to keep several servers apart.

    Raises:
        MissingDependencyError: ``mcp`` is not installed.
        ToolSetupError: the server offers too many tools, two of one name, one without a name, or ones whose arguments
            no model can be told.
    """
    mcp = require("mcp", "mcp", "an MCP server's tools")
    try:
        async with mcp.Client(server, read_timeout_seconds=seconds) as client:
            yield _wrapped(client, await _offered(client), prefix, seconds, max_output)
    except BaseExceptionGroup as group:
        error = _only(group)
        if error is None:
            raise
    else:
        return
    raise error


def _only(error: BaseException) -> BaseException | None:
    """The one error within nested groups, or ``None`` where there are several."""
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error


async def _offered(client: Any) -> list[Any]:
    """The server's descriptions of its tools, page by page."""
    described: list[Any] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        described.extend(page.tools)
        cursor = page.next_cursor
        if len(described) > _MAX_TOOLS:
            raise ToolSetupError(f"the MCP server offers more than {_MAX_TOOLS} tools")
        if not cursor:
            return described
    raise ToolSetupError(f"the MCP server's list of tools has no end ({_MAX_PAGES} pages were read)")


def _wrapped(client: Any, described: list[Any], prefix: str, seconds: float, max_output: int) -> list[BaseTool]:
    tools = [_wrap(client, item, prefix, seconds, max_output) for item in described]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ToolSetupError(f"the MCP server offers two tools of one name, {twice!r}, among {sorted(names)}")
    characters = sum(len(tool.description) + len(json.dumps(tool.args_schema)) for tool in tools)
    if characters > _MAX_TOLD:
        raise ToolSetupError(f"the MCP server describes its tools in {characters} characters, the limit is {_MAX_TOLD}")
    return tools


def _name(prefix: str, given: str) -> str:
    """A name that every model's call format takes: ASCII letters, digits, ``_`` and ``-``, at most 64. Other letters
    become their code points and a name too long ends in a digest, so that different names stay different.

    Raises:
        ToolSetupError: it is empty.
    """
    if not given.strip():
        raise ToolSetupError(f"the MCP server offers a tool with the empty name {given[:64]!r}")
    name = "".join(f"u{ord(letter):x}" if ord(letter) > 127 else letter for letter in prefix + given[:1_000])
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: _MAX_NAME - 9]}_{digest}"


class _RemoteTool(StructuredTool):
    """Its arguments are the server's, and may be called as LangChain's own: ``config``, ``run_manager``, ``self``."""

    def _to_args_and_kwargs(self, *given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional, arguments = super()._to_args_and_kwargs(*given)
        return positional, {"arguments": arguments}


def _wrap(client: Any, item: Any, prefix: str, seconds: float, max_output: int) -> BaseTool:
    async def call(arguments: dict[str, Any]) -> str:
        try:
            async with asyncio.timeout(seconds + 1):  # a call may have several rounds
                result = await client.call_tool(item.name, arguments, read_timeout_seconds=seconds)
            text = _text(result, max_output)
        except TimeoutError:
            raise LimitError(f"the server did not answer within {seconds:g} s") from None
        except Exception as error:  # the SDK raises many kinds; the agent must go on after each of them
            if "timed out" in str(error).lower():
                raise LimitError(f"the server did not answer within {seconds:g} s") from None
            raise ToolError(f"the server failed: {type(error).__name__}: {str(error)[:300]}") from error
        if result.is_error:
            raise ToolError(text)
        return text

    return _RemoteTool(
        name=_name(prefix, item.name),
        description=presented(item.description or item.name, 2_000),
        args_schema=_schema(item),
        coroutine=call,
        handle_tool_error=failure_text,
    )


def _schema(item: Any) -> dict[str, Any]:
    """The tool's arguments; they stand in the prompt, so their words are cleaned like any text of the server's.

    Raises:
        ToolSetupError: they are no object, too long, or nested too deeply.
    """
    given = item.input_schema or {"type": "object"}
    if not isinstance(given, dict) or given.get("type", "object") != "object":
        raise ToolSetupError(f"the MCP server's tool {item.name[:64]!r} takes no object of arguments")
    try:
        size = len(json.dumps(given))
        if size > _MAX_SCHEMA:
            raise ToolSetupError(
                f"the MCP server's tool {item.name[:64]!r} describes its arguments in {size} characters, "
                f"the limit is {_MAX_SCHEMA}"
            )
        return {"properties": {}, **_cleaned(given), "type": "object"}
    except RecursionError:
        raise ToolSetupError(f"the MCP server's tool {item.name[:64]!r} nests its arguments too deeply") from None


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(part) for key, part in value.items()}
    return [_cleaned(part) for part in value] if isinstance(value, list) else value


def _text(result: Any, limit: int) -> str:
    """Text parts, as far as they can be shown; of others only the kind, because a text model cannot use them. Where a
    server gives a structured answer alone, that."""
    parts: list[str] = []
    room = limit
    for part in result.content[:_MAX_PARTS]:
        text = getattr(part, "text", None) or f"[{str(getattr(part, 'type', 'unknown'))[:40]} content]"
        parts.append(text)
        room -= len(text) + 1
        if room < 0:
            break
    more = len(result.content) - len(parts)
    if not result.content and getattr(result, "structured_content", None) is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    left_off = [f"({more} more parts left off)"] if more else []
    text = presented("\n".join(parts), limit)
    return "\n".join([text, *left_off]) if parts else "(empty answer)"
