"""One turn in full: its figures, its prefix reuse, its messages where they were recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any

from markupsafe import Markup

from mixquant_agents.dashboard import formatting
from mixquant_agents.dashboard.templates import render
from mixquant_agents.records import COUNTS, TIMES
from mixquant_agents.telemetry.analysis.prompt_diff import diverging_text
from mixquant_agents.telemetry.events import TurnContent
from mixquant_agents.telemetry.store.content import unpack_content
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["Added", "Message", "added_since", "answers", "message_view", "turn_detail"]

ROLES = ("system", "user", "assistant", "tool")
PREVIEW = 1000
"""Characters of an answer, and of each of its calls, that a row of the waterfall shows."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as text. ``css`` is one of our own class names, never a foreign string."""

    role: str
    css: str
    reasoning: str
    text: str
    calls: tuple[str, ...]


def message_view(message: Any) -> Message:
    """From a message of any shape: what was recorded came from models, tools and users, and may be malformed."""
    if not isinstance(message, Mapping):
        return Message("?", "", "", _text(message), ())
    role = str(message.get("role", "?"))
    name = message.get("name")
    calls = message.get("tool_calls")
    return Message(
        role=f"{role} {name}" if name else role,
        css=role if role in ROLES else "",
        reasoning=_text(message.get("reasoning_content")),
        text=_text(message.get("content")),
        calls=tuple(_call(call) for call in calls) if isinstance(calls, list | tuple) else (),
    )


def _call(call: Any) -> str:
    if not isinstance(call, Mapping):
        return _text(call)
    function = call.get("function")
    function = function if isinstance(function, Mapping) else call
    return f"{function.get('name', '?')}({_text(function.get('arguments', function.get('args')))})"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Added:
    """What a turn's messages are beside those that the turn before ended with (its own, and its answer).

    Attributes:
        kept: how many stand at the beginning as they were.
        new: how many come after those.
        changed: how many of the earlier ones are gone, or differ.
    """

    kept: int
    new: int
    changed: int


def added_since(before: TurnContent | None, now: TurnContent | None) -> Added | None:
    """What was added; ``None`` where one of the two was not recorded. Reasoning is left aside: it is not sent again."""
    if before is None or now is None or before.problem is not None or now.problem is not None:
        return None
    earlier = [*before.messages, *([before.answer] if before.answer is not None else ())]
    pairs = zip(map(_compared, earlier), map(_compared, now.messages), strict=False)
    kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Added(kept, len(now.messages) - kept, len(earlier) - kept)


def _compared(message: Any) -> tuple[str, str, tuple[str, ...]]:
    view = message_view(message)
    return view.role, view.text, view.calls


def answers(store: TurnStore, turns: Sequence[StoredTurn]) -> dict[int, Message]:
    """The beginnings of the recorded answers, by the number of their turn."""
    recorded = ((turn.number, store.packed_content(turn)) for turn in turns)
    shown = ((number, _beginning(packed)) for number, packed in recorded if packed is not None)
    return {number: message for number, message in shown if message is not None}


@lru_cache(maxsize=512)  # contents hold whole prompts, and a live page asks for all answers at each change
def _beginning(packed: bytes) -> Message | None:
    answer = unpack_content(packed).answer
    if answer is None:
        return None
    message = message_view(answer)
    return replace(message, text=_cut(message.text), calls=tuple(_cut(call) for call in message.calls))


def _cut(text: str) -> str:
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]}…"


def turn_detail(store: TurnStore, turn: StoredTurn, *, content: bool = True) -> Markup:
    """All figures of a turn, its prefix reuse, and, with ``content``, its messages where they were recorded."""
    prefix = store.prefix(turn)
    earlier = store.turn(prefix.earlier_turn_id) if prefix is not None and prefix.earlier_turn_id is not None else None
    recorded = store.content(turn) if content else None
    before = store.predecessor(turn)
    growth = None
    if before is not None and before.prompt_tokens is not None and turn.prompt_tokens is not None:
        growth = turn.prompt_tokens - before.prompt_tokens
    return render(
        "turn",
        turn=turn,
        shown=content,
        facts=_facts(turn),
        unknown=formatting.UNKNOWN,
        prefix=prefix,
        earlier=earlier,
        before=before,
        growth=growth,
        added=added_since(store.content(before), recorded) if before is not None and recorded is not None else None,
        divergence=diverging_text(store.content(earlier), recorded) if earlier is not None else None,
        messages=[message_view(message) for message in recorded.messages] if recorded is not None else None,
        problem=recorded.problem if recorded is not None else None,
        answer=message_view(recorded.answer) if recorded is not None and recorded.answer is not None else None,
    )


def _facts(turn: StoredTurn) -> list[tuple[str, str, str]]:
    """``(name, value, what it means)``."""
    tokens = [(count.label, formatting.count(getattr(turn, count.field)), count.help) for count in COUNTS]
    if turn.tokens_per_cycle is not None:
        tokens.append(("tokens a draft cycle", formatting.rate(turn.tokens_per_cycle), ""))
    times = [(time.label, formatting.duration(getattr(turn, time.field)), time.help) for time in TIMES]
    times.append(("tools before", formatting.duration(turn.tool_seconds_before), "Tools since the turn before."))
    formats = f"{turn.prefill_format or formatting.UNKNOWN} / {turn.decode_format or formatting.UNKNOWN}"
    rest = [
        ("engine", turn.engine),
        ("formats, prefill / decode", formats + (" (emulated)" if turn.emulated else "")),
        ("device", turn.device or formatting.UNKNOWN),
        ("finish reason", turn.finish_reason or formatting.UNKNOWN),
        ("times measured by", turn.timing_source or formatting.UNKNOWN),
        ("run", turn.root_run_id or formatting.UNKNOWN),
        ("trace", turn.trace_id or formatting.UNKNOWN),
    ]
    return [*tokens, *times, *((name, value, "") for name, value in rest)]
