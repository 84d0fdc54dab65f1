"""Tool calls as servers stream them → numbered calls with a name and an id each.

OpenAI numbers the calls of an answer and names and identifies each once. Others give all calls the index 0 or none, no
id or the same one, repeat the name with each piece, or give the arguments as an object instead of its text, as the text
of its text, as ``null``, or as ``{}`` with the real ones behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mixquant_agents.engine.base import ToolCallDelta, new_call_id
from mixquant_agents.engine.hermes.json_scan import ValueScanner
from mixquant_agents.unicode import well_formed

__all__ = ["ToolCallReader"]


@dataclass(eq=False, slots=True)
class _Call:
    """One call of the answer.

    Attributes:
        server_index, server_id: as the server gave them; ``server_id`` is empty where it gave none.
        index: number in the answer; ``None`` until the call has a name, for without it there is none.
        pieces: the arguments so far.
        has_arguments: they are more than white space.
        held: the arguments are not given out before their end: so far they are no object, or one without members.
    """

    server_index: object
    server_id: str = ""
    name: str = ""
    index: int | None = None
    pieces: list[str] = field(default_factory=list)
    has_arguments: bool = False
    held: bool = False
    scanner: ValueScanner = field(default_factory=ValueScanner)

    def add(self, arguments: str) -> str:
        """Take a piece of the arguments, and note whether they are complete; returns what may be given out by now."""
        text = arguments if self.has_arguments else arguments.lstrip()
        if self.held and text.lstrip().startswith("{") and self.arguments.strip() == "{}":
            self.pieces, self.scanner = [], ValueScanner()
            self.held = self.has_arguments = False
        if arguments:
            self.pieces.append(arguments)
        if not text:
            return "" if self.held else arguments
        if not self.has_arguments:
            self.held = text[0] in '"n' or text.rstrip() == "{}"
        self.has_arguments = True
        if not self.scanner.done:
            self.scanner.feed(text, 0)
        return "" if self.held else arguments

    @property
    def object_text(self) -> str:
        """The arguments that were held, as the object they stand for, where they stand for one."""
        try:
            value = json.loads(self.arguments, strict=False)
        except (ValueError, RecursionError):
            return self.arguments
        if value is None or value == "":
            return "{}"
        return value if isinstance(value, str) and value.lstrip().startswith("{") else self.arguments

    @property
    def arguments(self) -> str:
        """The arguments so far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class _Piece:
    index: object
    id: str
    name: str
    arguments: str


class ToolCallReader:
    """Reads the calls of one answer.

    Args:
        max_calls: how many calls the request allows; ``None`` for any number.
    """

    def __init__(self, max_calls: int | None = None) -> None:
        self._max_calls = max_calls
        self._calls: list[_Call] = []
        self._ids: set[str] = set()
        self._named = 0
        self._refused: dict[int, list[str]] = {}

    def __bool__(self) -> bool:
        """Whether the answer holds a call that the request allows."""
        return self._named > 0 and self._max_calls != 0

    def take(self, pieces: object) -> tuple[ToolCallDelta, ...]:
        """The call pieces of one chunk: a list of OpenAI's ``tool_calls`` entries, or one such entry."""
        entries = [pieces] if isinstance(pieces, Mapping) else pieces if isinstance(pieces, Sequence) else ()
        opened: list[_Call] = []
        out: list[ToolCallDelta] = []
        for entry in entries:
            piece = _piece(entry)
            if piece is not None:
                out += self._take(piece, opened)
        return tuple(out)

    def finish(self, *, complete: bool) -> tuple[tuple[ToolCallDelta, ...], tuple[tuple[str, str], ...]]:
        """Last pieces, and ``(text, reason)`` of what is no call.

        Args:
            complete: the server says that it has ended the answer: a call without arguments has none.
        """
        last = []
        for call in self._calls:
            if call.index is None or not self._allows(call.index):
                continue
            if call.held:
                last.append(ToolCallDelta(call.index, arguments=call.object_text))
            elif complete and not call.has_arguments:
                last.append(ToolCallDelta(call.index, arguments="{}"))
        nameless = [(call.arguments, "no function name") for call in self._calls if not call.name and call.pieces]
        why = (
            "the server called a tool although tool_choice is 'none'"
            if self._max_calls == 0
            else "the server made a further call although parallel_tool_calls is False"
        )
        refused = [("".join(texts), why) for texts in self._refused.values()]
        return tuple(last), (*refused, *nameless)

    def _take(self, piece: _Piece, opened: list[_Call]) -> Iterator[ToolCallDelta]:
        call = self._call_of(piece, opened)
        if call is None:
            call = _Call(piece.index)
            self._calls.append(call)
            opened.append(call)
        elif piece.name and call.scanner.done:
            return  # the whole call once more
        call.server_id = call.server_id or piece.id
        certain = call.add(piece.arguments)
        if call.index is not None:
            if certain:
                yield from self._allowed(ToolCallDelta(call.index, arguments=certain))
        elif piece.name:
            call.name, call.index = piece.name, self._named
            self._named += 1
            certain = "" if call.held else call.arguments
            yield from self._allowed(ToolCallDelta(call.index, self._new_id(call.server_id), call.name, certain))

    def _call_of(self, piece: _Piece, opened: Sequence[_Call]) -> _Call | None:
        """The call that ``piece`` continues; ``None`` where it begins one.

        Args:
            opened: calls that began in this chunk: a further one with a name is another call.
        """
        same_index = [call for call in self._calls if call.server_index == piece.index]
        same_id = [call for call in self._calls if piece.id and call.server_id == piece.id]
        both = [call for call in same_id if call in same_index]
        if not piece.name:
            open_calls = [call for call in self._calls if call.server_index is None and not call.scanner.done]
            candidates = both or same_id or same_index or (self._calls if piece.index is None else open_calls)
            return candidates[-1] if candidates else None
        candidates = both or same_index or (same_id if piece.index is None else [])
        if not candidates:
            return None
        call = candidates[-1]
        other_id = piece.id and call.server_id and piece.id != call.server_id
        if other_id or (call.name and (piece.name != call.name or call in opened)):
            return None
        if not call.name or not piece.arguments or not call.scanner.done:
            return call  # its name at last, or its name with each piece
        return call if piece.id and piece.arguments == call.arguments else None

    def _new_id(self, given: str) -> str:
        """The server's id, or one of ours where it gave none or has given it to another call."""
        call_id = given if given and given not in self._ids else new_call_id()
        self._ids.add(call_id)
        return call_id

    def _allows(self, index: int) -> bool:
        return self._max_calls is None or index < self._max_calls

    def _allowed(self, delta: ToolCallDelta) -> Iterator[ToolCallDelta]:
        if self._allows(delta.index):
            yield delta
        else:
            self._refused.setdefault(delta.index, []).append((delta.name or "") + delta.arguments)


def _piece(entry: object) -> _Piece | None:
    """An entry in one form; ``None`` where it says nothing."""
    if not isinstance(entry, Mapping):
        return None
    function = entry.get("function")
    function = function if isinstance(function, Mapping) else entry  # some servers leave the level out
    arguments = function.get("arguments")
    if arguments is None:
        arguments = ""
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name, call_id = function.get("name"), entry.get("id")
    piece = _Piece(
        entry.get("index"),
        well_formed(str(call_id)) if isinstance(call_id, str | int) and not isinstance(call_id, bool) else "",
        well_formed(name).strip() if isinstance(name, str) else "",
        well_formed(arguments),
    )
    return piece if piece.id or piece.name or piece.arguments else None
