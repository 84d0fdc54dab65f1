"""The tools of an MCP server, through a thin client on ``mcp`` 2.

::

    async with mcp_tools(StdioServerParameters(command="my-server")) as tools:
        graph = tool_agent(model, tools)

The server is trusted to run (you name its command or address), its words are not: descriptions and answers are cleaned
and cut like those of any tool, and an answer that does not come in time is an error the model can act on.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from mixquant_tools.base import clean, clip, failure_text
from mixquant_tools.errors import LimitError, ToolError, ToolSetupError, require

__all__ = ["mcp_tools"]

_MAX_TOOLS = 200
_NAME = re.compile(r"[^A-Za-z0-9_-]")


@asynccontextmanager
async def mcp_tools(
    server: Any, *, seconds: float = 30.0, max_output: int = 20_000, prefix: str = ""
) -> AsyncIterator[list[BaseTool]]:
    """Connect and yield the server's tools; the connection ends with the context. The tools are async only.

    Args:
        server: a URL (streamable HTTP), ``mcp.StdioServerParameters``, a transport, or an in-process server.
        seconds: longest wait for one answer.
        max_output: longest answer, in characters.
        prefix: put before every name, to keep several servers apart.

    Raises:
        MissingDependencyError: ``mcp`` is not installed.
        ToolSetupError: the server offers too many tools, or two of one name.
    """
    mcp = require("mcp", "mcp", "an MCP server's tools")
    async with mcp.Client(server, read_timeout_seconds=seconds) as client:
        described: list[Any] = []
        cursor = None
        while True:
            page = await client.list_tools(cursor=cursor)
            described.extend(page.tools)
            cursor = page.next_cursor
            if len(described) > _MAX_TOOLS:
                raise ToolSetupError(f"the MCP server offers more than {_MAX_TOOLS} tools")
            if not cursor:
                break
        tools = [_wrap(client, item, prefix, seconds, max_output) for item in described]
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise ToolSetupError(f"the MCP server offers two tools of one name among {sorted(names)}")
        yield tools


def _wrap(client: Any, item: Any, prefix: str, seconds: float, max_output: int) -> BaseTool:
    async def call(**arguments: Any) -> str:
        try:
            result = await client.call_tool(item.name, arguments, read_timeout_seconds=seconds)
        except TimeoutError:
            raise LimitError(f"the server did not answer within {seconds:g} s") from None
        except Exception as error:  # the SDK raises many kinds; the agent must go on after each of them
            if "timed out" in str(error).lower():
                raise LimitError(f"the server did not answer within {seconds:g} s") from None
            raise ToolError(f"the server failed: {type(error).__name__}: {str(error)[:300]}") from error
        text = clip(clean(_text(result)), max_output)
        if result.is_error:
            raise ToolError(text)
        return text

    return StructuredTool(
        name=_NAME.sub("_", prefix + item.name)[:64],
        description=clip(clean(item.description or item.name), 2_000),
        args_schema=item.input_schema,
        coroutine=call,
        handle_tool_error=failure_text,
    )


def _text(result: Any) -> str:
    """Text parts as they are; of others only the kind, because a text model cannot use them."""
    parts = [getattr(part, "text", None) or f"[{getattr(part, 'type', 'unknown')} content]" for part in result.content]
    return "\n".join(parts) or "(empty answer)"
