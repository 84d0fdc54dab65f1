"""Tokenizer, chat template and prefix cache of the scripted engine: deterministic, and right in their relations.

A later turn's prompt begins with the earlier turn's prompt and answer, so cached tokens grow over an agent's turns as
they do in a real engine.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from mixquant_agents.engine.base import JsonObject, Message
from mixquant_agents.engine.hermes import CALL_CLOSE, CALL_OPEN

__all__ = ["BLOCK_TOKENS", "PrefixCache", "calls_text", "prompt_tokens", "token_id", "tokenize"]

BLOCK_TOKENS = 16
_TOKEN = re.compile(r"<\|im_(?:start|end)\|>|</?(?:tool_call|think)>| ?[^\W_]{1,6}|\s+|.", re.DOTALL)


def token_id(piece: str) -> int:
    """A stable id in ``[0, 2**17)`` for a piece of text."""
    return zlib.crc32(piece.encode("utf-8", "surrogatepass")) & 0x1FFFF


@lru_cache(maxsize=4096)
def tokenize(text: str) -> tuple[str, ...]:
    """``text`` in pieces of up to six letters; joined they are ``text`` again."""
    return tuple(_TOKEN.findall(text))


def calls_text(calls: Iterable[tuple[str, str]], *, after_text: bool) -> str:
    """Hermes text of ``(name, JSON arguments)`` calls, as the frozen template renders an assistant's calls."""
    text = "\n".join(
        f'{CALL_OPEN}\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n{CALL_CLOSE}'
        for name, arguments in calls
    )
    return "\n" + text if text and after_text else text


def prompt_tokens(messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> list[int]:
    """Token ids of the rendered prompt. Tools always stand at one place: right after the first system message."""
    ids: list[int] = []
    rest = list(messages)
    system = str(rest.pop(0).get("content") or "") if rest and rest[0].get("role") == "system" else ""
    if tools:
        system += "\n\n# Tools\n" + "\n".join(json.dumps(tool) for tool in tools)
    segments = [f"<|im_start|>system\n{system}<|im_end|>\n"] if system else []
    segments += [f"<|im_start|>{message.get('role')}\n{_body(message)}<|im_end|>\n" for message in rest]
    for segment in [*segments, "<|im_start|>assistant\n"]:
        ids.extend(map(token_id, tokenize(segment)))
    return ids


def _body(message: Message) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = json.dumps(content)
    calls: Any = message.get("tool_calls") or ()
    pairs = ((call["function"]["name"], call["function"]["arguments"]) for call in calls)
    return content + calls_text(pairs, after_text=bool(content))


class PrefixCache:
    """Which prompt beginnings were seen, in blocks of 16 tokens, least recently used blocks leaving first.

    Args:
        blocks: capacity in blocks.
    """

    def __init__(self, blocks: int = 65_536) -> None:
        self._blocks = blocks
        self._seen: OrderedDict[int, None] = OrderedDict()

    def matched(self, ids: Sequence[int], salt: str | None) -> int:
        """Tokens of ``ids`` whose blocks are known. At least the last token is always computed."""
        count = 0
        for key in self._keys(ids[:-1], salt):
            if key not in self._seen:
                break
            self._seen.move_to_end(key)
            count += BLOCK_TOKENS
        return count

    def add(self, ids: Sequence[int], salt: str | None) -> None:
        """Remember every full block of ``ids``."""
        for key in self._keys(ids, salt):
            self._seen[key] = None
            self._seen.move_to_end(key)
        while len(self._seen) > self._blocks:
            self._seen.popitem(last=False)

    @staticmethod
    def _keys(ids: Sequence[int], salt: str | None) -> Iterable[int]:
        key = hash(salt)
        for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = hash((key, *ids[start : start + BLOCK_TOKENS]))
            yield key
