"""The tokens of earlier turns, found again by what their conversation says.

A turn is found by a digest of the whole conversation up to and including its answer. Message ids would not do: who
edits a message keeps its id, reducers and checkpointers give ids of their own, and a branch repeats them. A
conversation that says the same may go on from the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixquant_agents.engine.base import JsonObject, Message

__all__ = ["DEFAULT_LIMIT", "WrittenAnswers", "WrittenTurn", "conversation_keys", "key_after"]

DEFAULT_LIMIT = 8_000_000
"""Tokens that are kept, of 4 bytes each."""


@dataclass(frozen=True, slots=True, eq=False)
class WrittenTurn:
    """Prompt and answer of one turn, as the engine read and wrote them.

    Attributes:
        key: of the conversation including the answer.
        before: the turn whose tokens this one's prompt begins with.
        own: the tokens behind these: the rest of the prompt, and the answer.
        length: tokens in all.
        stopped: the last token is the one that ended the answer, which the template writes again.
    """

    key: bytes
    before: WrittenTurn | None
    own: array[int]
    length: int
    stopped: bool

    @property
    def end(self) -> int | None:
        """The token that ended the answer; ``None`` where it was cut off."""
        return self.own[-1] if self.stopped else None

    @property
    def tokens(self) -> list[int]:
        """All token ids, without the one that ended the answer."""
        pieces, turn = [], self
        while True:
            pieces.append(turn.own[: len(turn.own) - turn.stopped])
            if turn.before is None:
                break
            turn = turn.before
        return [token for piece in reversed(pieces) for token in piece]


class WrittenAnswers:
    """Turns by their keys, least recently used first out. Safe to use from several threads.

    Args:
        limit: tokens that are kept at most.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._turns: OrderedDict[bytes, WrittenTurn] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return self._tokens

    def keep(self, key: bytes, before: WrittenTurn | None, own: Iterable[int], *, stopped: bool) -> None:
        """Keep a turn; see :class:`WrittenTurn`. Of a conversation that is known already the first tokens stay: later
        turns may build on them, and would hold them beyond what is counted."""
        tokens = array("i", own)
        with self._lock:
            if (known := self._turns.get(key)) is not None:
                self._touch(known)
                return
            if before is not None and self._turns.get(before.key) is not before:  # it left while this turn ran
                tokens, before = array("i", [*before.tokens, *tokens]), None
            length = len(tokens) + (before.length - before.stopped if before is not None else 0)
            self._turns[key] = turn = WrittenTurn(key, before, tokens, length, stopped)
            self._tokens += len(tokens)
            self._touch(turn)
            while self._tokens > self._limit and self._turns:
                _, oldest = self._turns.popitem(last=False)
                self._tokens -= len(oldest.own)

    def newest(self, keys: Sequence[tuple[int, bytes]]) -> tuple[int, WrittenTurn] | None:
        """The last of these conversations whose turn is kept, and its place.

        Args:
            keys: places and keys, as :func:`conversation_keys` gives them.
        """
        with self._lock:
            for index, key in reversed(keys):
                if (turn := self._turns.get(key)) is not None:
                    self._touch(turn)
                    return index, turn
        return None

    def clear(self) -> None:
        """Forget all turns."""
        with self._lock:
            self._turns.clear()
            self._tokens = 0

    def _touch(self, turn: WrittenTurn) -> None:
        """Used now, and the turns before it a moment later: so a turn always leaves before those that it builds on, and
        what is counted is what is held."""
        walked: WrittenTurn | None = turn
        while walked is not None:
            if walked.key in self._turns:
                self._turns.move_to_end(walked.key)
            walked = walked.before


def conversation_keys(
    messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
) -> tuple[list[tuple[int, bytes]], bytes]:
    """Place and key of each answer in the conversation, and the key of the whole."""
    key = hashlib.blake2b(_bytes([tools, variables]), digest_size=16).digest()
    keys = []
    for index, message in enumerate(messages):
        key = key_after(key, message)
        if message.get("role") == "assistant":
            keys.append((index, key))
    return keys, key


def key_after(key: bytes, message: Message) -> bytes:
    """The key of a conversation with one more message."""
    return hashlib.blake2b(key + _bytes(_compared(message)), digest_size=16).digest()


def _bytes(value: Any) -> bytes:
    return json.dumps(value, default=str, sort_keys=True).encode()  # ASCII, so lone surrogates are no matter


def _compared(message: Message) -> dict[str, Any]:
    """What a message says. Arguments are compared by value: between two turns they are a Python dict. Ids of an
    answer's calls are given to it from outside."""
    content = {
        name: value for name, value in message.items() if name not in ("tool_calls", "id") and value not in (None, "")
    }
    if calls := message.get("tool_calls"):
        content["tool_calls"] = [_called(call) for call in calls]
    return content


def _called(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False)
        except (ValueError, RecursionError):
            return [function.get("name"), arguments, "text"]
    return [function.get("name"), arguments]
