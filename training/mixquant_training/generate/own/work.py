"""The tools that this project ships, in their own schemas, with the results they really give."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

from mixquant_training.generate import documents
from mixquant_training.generate.own import tasks as own_tasks
from mixquant_training.generate.own import trade as own_trade
from mixquant_training.generate.own import world as own_world
from mixquant_training.generate.own.files import listed
from mixquant_training.generate.own.shown import Work
from mixquant_training.generate.own.sql import database
from mixquant_training.generate.toolbox import Message, Scene, Toolbox, called
from mixquant_training.generate.tools import Tool
from mixquant_training.generate.words import CATALOG

__all__ = ["own", "own_fan"]


@functools.cache
def _schemas() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CATALOG / "own_tools.json").read_text())
    return loaded


def _one(make: Callable[[random.Random], Work]) -> Callable[[random.Random], list[Work]]:
    return lambda rng: [make(rng)]


_KINDS: list[tuple[Callable[[random.Random], list[Work]], float]] = [
    (own_world.reckoning, 20), (_one(own_tasks.arithmetic), 4), (own_world.measures, 10), (_one(own_tasks.clock), 9), (own_world.times, 8),
    (own_world.file_work, 13), (_one(own_tasks.files), 6), (listed, 14), (database, 13), (own_trade.trade, 12), (own_trade.staff, 8), (own_trade.difference, 4),
    (own_world.document_work, 9), (documents.about, 30), (own_world.note_work, 8), (_one(own_tasks.notes), 4),
]  # fmt: skip
_SYSTEMS = [
    "You are a helpful assistant. Use the tools, then answer with the result.", "You are a helpful assistant. Use the tools where they help, then answer in words.",
    "You are a helpful assistant.", "You are a helpful assistant with a long memory. Notes from earlier talks may stand before a question.",
]  # fmt: skip


def _works(rng: random.Random) -> list[Work]:
    makers, shares = zip(*_KINDS, strict=True)
    make: Callable[[random.Random], list[Work]] = rng.choices(makers, shares)[0]
    return make(rng)


def _needed(works: list[Work]) -> set[str]:
    return {name for _, calls, _ in works for name, _, _ in calls}


def _opening(box: Toolbox) -> list[Message]:
    return [{"role": "system", "content": box.rng.choice(_SYSTEMS)}] if box.rng.random() < 0.6 else box.opening()


def _tools(box: Toolbox, needed: set[str], more: int) -> list[Tool]:
    """The needed tools and some that are not, in any order."""
    others = sorted(set(_schemas()) - needed)
    names = [*sorted(needed), *box.rng.sample(others, k=min(len(others), more))]
    extra = box.tools([box.archetype() for _ in range(box.rng.choice([0, 0, 0, 0, 1]))])
    box.rng.shuffle(names)
    return [Tool(_schemas()[name], {}) for name in names] + [tool for tool in extra if tool.name not in _schemas()]


def _messages(box: Toolbox, works: list[Work]) -> list[Message]:
    messages: list[Message] = []
    for text, calls, final in works:
        messages.append({"role": "user", "content": box.dressed(text) if box.rng.random() < 0.3 else text})
        for name, arguments, result in calls:
            messages += [called([{"name": name, "arguments": arguments}]), {"role": "tool", "content": result}]
        messages.append({"role": "assistant", "content": final})
    return messages


def own(box: Toolbox) -> Scene:
    """Tasks for the shipped tools: calls with their results, then the answer; sometimes several tasks in a row."""
    rng = box.rng
    works = [work for _ in range(rng.choice([1, 1, 1, 1, 2])) for work in _works(rng)]
    tools = _tools(box, _needed(works), rng.choice([0, 1, 1, 1, 2, 2, 3, 5, 8]))
    return Scene("own", tools, [*_opening(box), *_messages(box, works)])


def own_fan(box: Toolbox) -> list[Scene]:
    """Three to six such conversations over the same tools, at most five of them needed."""
    rng = box.rng
    several: list[list[Work]] = []
    needed: set[str] = set()
    for _ in range(40):
        works = _works(rng)
        if len(needed | _needed(works)) <= 5:
            several.append(works)
            needed |= _needed(works)
        if len(several) == 6:
            break
    tools, opening = _tools(box, needed, rng.choice([0, 0, 1, 2])), _opening(box)
    return [Scene("own", tools, [*opening, *_messages(box, works)]) for works in several]
