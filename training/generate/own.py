"""The tools that this project ships, in their own schemas, with the results they really give."""

from __future__ import annotations

import functools
import json
from typing import Any

from training.generate import own_tasks
from training.generate.scenes import Message, Scene, Toolbox, called
from training.generate.tools import Tool
from training.generate.words import CATALOG

__all__ = ["own"]

_GROUPS = [
    ["calculator"], ["calculator", "convert_units", "current_time", "convert_time", "time_between", "shift_time"],
    ["current_time", "convert_time", "time_between", "shift_time"], ["save_note", "recall_notes"],
    ["list_files", "read_file", "find_in_files", "write_file", "replace_in_file"], ["search_documents", "read_document"],
    ["calculator", "current_time", "search_documents", "read_document", "list_files", "read_file"],
    ["calculator", "save_note", "recall_notes", "list_files", "read_file", "write_file", "current_time"],
    ["calculator", "recall_notes", "read_file", "current_time"], ["convert_units"], ["search_documents"],
]  # fmt: skip


@functools.cache
def _schemas() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CATALOG / "own_tools.json").read_text())
    return loaded


_KINDS = {
    "calculator": own_tasks.arithmetic, "convert_units": own_tasks.units, "current_time": own_tasks.clock, "convert_time": own_tasks.clock, "time_between": own_tasks.clock, "shift_time": own_tasks.clock,
    "save_note": own_tasks.notes, "recall_notes": own_tasks.notes, "list_files": own_tasks.files, "read_file": own_tasks.files, "find_in_files": own_tasks.files,
    "write_file": own_tasks.files, "replace_in_file": own_tasks.files, "search_documents": own_tasks.documents, "read_document": own_tasks.documents,
}  # fmt: skip


def own(box: Toolbox) -> Scene:
    """A task for the shipped tools: one to two calls with their results, then the answer; sometimes two tasks in a row."""
    rng = box.rng
    names = list(rng.choice(_GROUPS))
    extra = box.tools([box.archetype() for _ in range(rng.choice([0, 0, 0, 1, 2]))])
    messages: list[Message] = box.opening()
    for _ in range(rng.choice([1, 1, 1, 2, 2])):
        for _ in range(40):
            text, calls, final = _KINDS[rng.choice(names)](rng)
            if {name for name, _, _ in calls} <= set(names):
                break
        else:
            continue
        messages.append({"role": "user", "content": box.dressed(text) if rng.random() < 0.5 else text})
        for name, arguments, result in calls:
            messages += [called([{"name": name, "arguments": arguments}]), {"role": "tool", "content": result}]
        messages.append({"role": "assistant", "content": final})
    rng.shuffle(names)
    tools = [Tool(_schemas()[name], {}) for name in names] + [tool for tool in extra if tool.name not in names]
    if messages[-1]["role"] != "assistant":
        return own(box)
    return Scene("own", tools, messages)
