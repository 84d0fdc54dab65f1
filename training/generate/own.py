"""The tools that this project ships, in their own schemas, with the results they really give."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

from training.generate import own_tasks, own_world
from training.generate.own_sql import database
from training.generate.scenes import Message, Scene, Toolbox, called
from training.generate.tools import Tool
from training.generate.words import CATALOG

__all__ = ["own"]

Work = own_tasks.Work


@functools.cache
def _schemas() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CATALOG / "own_tools.json").read_text())
    return loaded


def _one(make: Callable[[random.Random], Work]) -> Callable[[random.Random], list[Work]]:
    return lambda rng: [make(rng)]


_KINDS: list[tuple[Callable[[random.Random], list[Work]], float]] = [
    (own_world.reckoning, 20), (_one(own_tasks.arithmetic), 4), (own_world.measures, 10), (_one(own_tasks.clock), 9), (own_world.times, 8),
    (own_world.file_work, 16), (_one(own_tasks.files), 7), (database, 18), (own_world.document_work, 18), (own_world.note_work, 8), (_one(own_tasks.notes), 4),
]  # fmt: skip
_SYSTEMS = [
    "You are a helpful assistant. Use the tools, then answer with the result.", "You are a helpful assistant. Use the tools where they help, then answer in words.",
    "You are a helpful assistant.", "You are a helpful assistant with a long memory. Notes from earlier talks may stand before a question.",
]  # fmt: skip


def own(box: Toolbox) -> Scene:
    """Tasks for the shipped tools: calls with their results, then the answer; sometimes several tasks in a row."""
    rng = box.rng
    makers, shares = zip(*_KINDS, strict=True)
    works: list[Work] = []
    for _ in range(rng.choice([1, 1, 1, 1, 2])):
        works += rng.choices(makers, shares)[0](rng)
    needed = {name for _, calls, _ in works for name, _, _ in calls}
    others = sorted(set(_schemas()) - needed)
    names = [*needed, *rng.sample(others, k=min(len(others), rng.choice([0, 1, 1, 1, 2, 2, 3, 5, 8])))]
    extra = box.tools([box.archetype() for _ in range(rng.choice([0, 0, 0, 0, 1]))])
    messages: list[Message] = (
        [{"role": "system", "content": rng.choice(_SYSTEMS)}] if rng.random() < 0.6 else box.opening()
    )
    for text, calls, final in works:
        messages.append({"role": "user", "content": box.dressed(text) if rng.random() < 0.3 else text})
        for name, arguments, result in calls:
            messages += [called([{"name": name, "arguments": arguments}]), {"role": "tool", "content": result}]
        messages.append({"role": "assistant", "content": final})
    rng.shuffle(names)
    tools = [Tool(_schemas()[name], {}) for name in names] + [tool for tool in extra if tool.name not in _schemas()]
    return Scene("own", tools, messages)
