"""The tools of an MCP server, through a thin client on ``mcp`` 2.

::

    async with mcp_tools(StdioServerParameters(command="my-server")) as tools:
        graph = tool_agent(model, tools)

The server is trusted to run (you name its command or address), its words are not: descriptions and answers are cleaned
and cut like those of any tool, and an answer that does not come in time is an error the model can act on.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from mixquant_tools.base import clean, clip, failure_text
from mixquant_tools.errors import LimitError, ToolError, ToolSetupError, require

__all__ = ["mcp_tools"]

_MAX_TOOLS = 200
_MAX_PAGES = 50
_MAX_SCHEMA = 20_000
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
        ToolSetupError: the server offers too many tools, two of one name, or one whose arguments no model can be told.
    """
    mcp = require("mcp", "mcp", "an MCP server's tools")
    async with mcp.Client(server, read_timeout_seconds=seconds) as client:
        described: list[Any] = []
        cursor = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            described.extend(page.tools)
            cursor = page.next_cursor
            if len(described) > _MAX_TOOLS:
                raise ToolSetupError(f"the MCP server offers more than {_MAX_TOOLS} tools")
            if not cursor:
                break
        else:
            raise ToolSetupError(f"the MCP server's list of tools has no end ({_MAX_PAGES} pages were read)")
        tools = [_wrap(client, item, prefix, seconds, max_output) for item in described]
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise ToolSetupError(f"the MCP server offers two tools of one name among {sorted(names)}")
        yield tools


class _RemoteTool(StructuredTool):
    """Its arguments are the server's, and may be called as LangChain's own: ``config``, ``run_manager``, ``self``."""

    def _to_args_and_kwargs(self, *given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places, names = super()._to_args_and_kwargs(*given)
        return places, {"arguments": names}


def _wrap(client: Any, item: Any, prefix: str, seconds: float, max_output: int) -> BaseTool:
    async def call(arguments: dict[str, Any]) -> str:
        try:
            result = await client.call_tool(item.name, arguments, read_timeout_seconds=seconds)
            text = clip(clean(_text(result, max_output)), max_output)
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
        name=_NAME.sub("_", prefix + item.name)[:64],
        description=clip(clean(item.description or item.name), 2_000),
        args_schema=_schema(item),
        coroutine=call,
        handle_tool_error=failure_text,
    )


def _schema(item: Any) -> dict[str, Any]:
    """The tool's arguments; they stand in the prompt, so their words are cleaned like any text of the server's.

    Raises:
        ToolSetupError: they are no object, or too long.
    """
    schema = _cleaned(item.input_schema or {"type": "object"})
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise ToolSetupError(f"the MCP server's tool {item.name[:64]!r} takes no object of arguments")
    if (size := len(json.dumps(schema))) > _MAX_SCHEMA:
        raise ToolSetupError(
            f"the MCP server's tool {item.name[:64]!r} describes its arguments in {size} characters, "
            f"the limit is {_MAX_SCHEMA}"
        )
    return {"properties": {}, **schema, "type": "object"}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(part) for key, part in value.items()}
    return [_cleaned(part) for part in value] if isinstance(value, list) else value


def _text(result: Any, limit: int) -> str:
    """Text parts, each as far as it can be shown; of others only the kind, because a text model cannot use them.
    Where a server gives a structured answer alone, that."""
    parts = [getattr(part, "text", None) or f"[{getattr(part, 'type', 'unknown')} content]" for part in result.content]
    if not parts and getattr(result, "structured_content", None) is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(part if len(part) <= 2 * limit else part[: 2 * limit] for part in parts) or "(empty answer)"
