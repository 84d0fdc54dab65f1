"""The schema of a structured answer, shown to the model.

A grammar holds an answer to a schema, but a model that never sees it does not know what the fields mean, and writes
what the grammar lets pass. The schema's place is fixed: the end of the first system message, or else the beginning of
the first message of the user. Both come before what changes from turn to turn, so the prefix cache keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mixquant_agents.engine.base import JsonObject, Message

__all__ = ["with_schema"]


def with_schema(messages: Sequence[Message], schema: JsonObject, *, tools: bool) -> list[Message]:
    """The conversation with ``schema`` in it.

    Args:
        tools: the answer may be a call instead.
    """
    when = "When you do not call a function, answer" if tools else "Answer"
    text = f"{when} with JSON that follows this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    shown = list(messages)
    for role in ("system", "user"):
        for index, message in enumerate(shown):
            if message["role"] == role and isinstance(message.get("content"), str):
                parts = (message["content"], text) if role == "system" else (text, message["content"])
                shown[index] = {**message, "content": "\n\n".join(part for part in parts if part)}
                return shown
    return [{"role": "user", "content": text}, *shown]
