"""Several requests about the same tools, each a conversation of its own: read the schemas once, decide many times.

The conversations begin alike (system message and tools), so that training computes that beginning once for all of them.
"""

from __future__ import annotations

import json

from mixquant_training.generate import dialogues, talk
from mixquant_training.generate.asking import ask
from mixquant_training.generate.catalog import Archetype
from mixquant_training.generate.compose import other_action, other_quantity
from mixquant_training.generate.scenes import hinted
from mixquant_training.generate.several import concatenate, repeated, split
from mixquant_training.generate.toolbox import KNOWLEDGE, Message, Scene, Toolbox, called, overlaps
from mixquant_training.generate.tools import Tool

__all__ = ["fan"]


def _call(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message]:
    asked = ask(archetype, box.rng, held=False)
    return [{"role": "user", "content": box.dressed(asked.question)}, called([tool.call(asked.arguments)])]


def _several(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message] | None:
    """The same tool two to six times."""
    rng = box.rng
    count, roll = rng.choice([2, 2, 2, 3, 3, 4, 5, 6]), rng.random()
    if roll < 0.6:
        found = repeated(box, archetype, count) if roll < 0.2 else split(box, archetype, count, 1 if roll < 0.42 else 2)
        if found is None:
            return None
        question, calls = found
    else:
        asked = [ask(archetype, rng, held=False, optional=0.25) for _ in range(min(count, 5))]
        question, calls = concatenate([one.question for one in asked], box), [one.arguments for one in asked]
    if len({str(call) for call in calls}) < len(calls):
        return None
    return [{"role": "user", "content": box.dressed(question)}, called([tool.call(call) for call in calls])]


def _mixed(box: Toolbox, archetypes: list[Archetype], tools: list[Tool]) -> list[Message] | None:
    """Two or three different tools in one request."""
    rng = box.rng
    if len(tools) < 2:
        return None
    order = rng.sample(range(len(tools)), k=min(len(tools), rng.choice([2, 2, 3])))
    asked = [ask(archetypes[index], rng, held=False, optional=0.25) for index in order]
    question = concatenate([one.question for one in asked], box)
    calls = [tools[index].call(one.arguments) for index, one in zip(order, asked, strict=True)]
    return [{"role": "user", "content": box.dressed(question)}, called(calls)]


def _missing(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message] | None:
    """A required value is missing or only hinted at."""
    rng = box.rng
    if rng.random() < 0.35:
        found = hinted(box, archetype)
        if found is None:
            return None
        missing, question = found
    elif archetype.asks:
        missing, template = rng.choice(archetype.asks)
        question = ask(archetype, rng, held=False, template=template).question
    else:
        return None
    text = talk.ask_back(archetype, missing.split(".")[0], tool, rng)
    return [{"role": "user", "content": box.dressed(question)}, {"role": "assistant", "content": text}]


def _refused(box: Toolbox, beside: Archetype | None, archetypes: list[Archetype], tools: list[Tool]) -> list[Message] | None:  # fmt: skip
    """Something that none of the tools does."""
    rng = box.rng
    meant = beside if beside and rng.random() < 0.5 else next(iter(box.distractors(archetypes, 1)), None)
    if meant is None or meant.key in KNOWLEDGE or any(overlaps(meant, one) for one in archetypes):
        return None
    asked = ask(meant, rng, held=False)
    return [
        {"role": "user", "content": box.dressed(asked.question)},
        {"role": "assistant", "content": talk.refuse(tools, rng)},
    ]


def _failed(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message]:
    """A call that fails: once more, or a word to the user."""
    rng = box.rng
    asked = ask(archetype, rng, held=False)
    call, (text, retry) = called([tool.call(asked.arguments)]), dialogues.failure(rng)
    shape = rng.choice([json.dumps({"error": text}), f"Error: {text}", json.dumps({"status": "error", "message": text}), text])  # fmt: skip
    messages = [{"role": "user", "content": box.dressed(asked.question)}, call, dialogues.tool_message(shape)]
    return [*messages, call if retry else dialogues.sorry(text, rng)]


def fan(box: Toolbox) -> list[Scene]:
    """Four to seven conversations over one to five tools. Training only."""
    rng = box.rng
    first, beside = box.archetype(), None
    archetypes = [first]
    if rng.random() < 0.33:
        shown, beside = (other_action if rng.random() < 0.6 else other_quantity)(rng)
        archetypes = [shown] if rng.random() < 0.5 else [first, shown]
    archetypes += box.distractors(archetypes, rng.choice([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6]))
    tools = box.tools(archetypes)
    order = rng.sample(tools, k=len(tools))
    opening = box.opening()
    scenes: list[Scene] = []
    wanted = rng.choice([4, 5, 5, 6, 7])
    while len(scenes) < wanted:
        roll, index = rng.random(), rng.randrange(len(tools))
        archetype, tool = archetypes[index], tools[index]
        messages: list[Message] | None
        if roll < 0.59:
            messages = _call(box, archetype, tool)
        elif roll < 0.70:
            messages = _several(box, archetype, tool)
        elif roll < 0.77:
            messages = _mixed(box, archetypes, tools)
        elif roll < 0.86:
            messages = _missing(box, archetype, tool)
        elif roll < 0.95:
            messages = _refused(box, beside, archetypes, tools)
        else:
            messages = _failed(box, archetype, tool)
        if messages:
            scenes.append(Scene("fan", order, [*opening, *messages]))
    return scenes
