"""Message contents at rest: zlib-packed JSON. Only written where content recording was switched on."""

from __future__ import annotations

import json
import zlib

from mixquant_agents.telemetry.events import TurnContent
from mixquant_agents.telemetry.plain import json_of

__all__ = ["pack_content", "unpack_content"]


def pack_content(content: TurnContent) -> bytes:
    """What JSON cannot say is said in words: a recorder never fails on a strange tool result."""
    value = {"messages": list(content.messages), "answer": content.answer, "prompt_text": content.prompt_text}
    return zlib.compress(json_of(value).encode("utf-8", "surrogatepass"), 6)


def unpack_content(packed: bytes) -> TurnContent:
    """What :func:`pack_content` packed; where that cannot be read, ``problem`` says why."""
    try:
        value = json.loads(zlib.decompress(packed).decode("utf-8", "surrogatepass"))
        messages, answer, prompt_text = value["messages"], value["answer"], value["prompt_text"]
    except (zlib.error, ValueError, TypeError, KeyError, RecursionError) as error:
        return TurnContent(problem=f"what was recorded cannot be read ({type(error).__name__})")
    return TurnContent(
        messages=messages if isinstance(messages, list) else [messages],
        answer=answer if isinstance(answer, dict | None) else {"role": "?", "content": answer},
        prompt_text=prompt_text if isinstance(prompt_text, str) else None,
    )
