"""Message contents at rest: zlib-packed JSON. Only written where content recording was switched on."""

from __future__ import annotations

import json
import zlib
from typing import Any

from mixquant_agents.telemetry.events import TurnContent

__all__ = ["pack_content", "unpack_content"]


def pack_content(content: TurnContent) -> bytes:
    """What JSON cannot say is written as its ``str``: a recorder never fails on a strange tool result."""
    value = {"messages": list(content.messages), "answer": content.answer, "prompt_text": content.prompt_text}
    return zlib.compress(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"), 6)


def unpack_content(packed: bytes) -> TurnContent:
    """What :func:`pack_content` packed."""
    value: dict[str, Any] = json.loads(zlib.decompress(packed).decode("utf-8", "surrogatepass"))
    return TurnContent(messages=value["messages"], answer=value["answer"], prompt_text=value["prompt_text"])
