"""Several requests in a row with the same tools: every one is decided anew (call, ask, say no), and most are answered."""

from __future__ import annotations

from mixquant_training.generate import talk
from mixquant_training.generate.asking import ask
from mixquant_training.generate.catalog import Archetype
from mixquant_training.generate.compose import other_action
from mixquant_training.generate.dialogues import results, tool_message
from mixquant_training.generate.several import split
from mixquant_training.generate.toolbox import KNOWLEDGE, Message, Scene, Toolbox, called
from mixquant_training.generate.tools import Tool

__all__ = ["session"]


def _call(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message]:
    rng = box.rng
    several = split(box, archetype, rng.choice([2, 2, 3]), rng.choice([1, 1, 2])) if rng.random() < 0.12 else None
    if several:
        question, made = several
        calls, said = [tool.call(one) for one in made], {}
    else:
        asked = ask(archetype, rng, held=False)
        question, calls, said = asked.question, [tool.call(asked.arguments)], asked.said
    messages: list[Message] = [{"role": "user", "content": box.dressed(question)}, called(calls)]
    texts = []
    for _ in calls:
        result = (
            results(archetype, rng, held=False)
            if archetype.result
            else {"status": rng.choice(["ok", "done", "success"])}
        )
        messages.append(tool_message(talk.result_text(result, rng)))
        texts.append(talk.answer(archetype, said, result, rng))
    return [*messages, {"role": "assistant", "content": " ".join(dict.fromkeys(texts))}]


def _missing(box: Toolbox, archetype: Archetype, tool: Tool) -> list[Message]:
    missing, template = box.rng.choice(archetype.asks)
    asked = ask(archetype, box.rng, held=False, template=template)
    text = talk.ask_back(archetype, missing.split(".")[0], tool, box.rng)
    return [{"role": "user", "content": box.dressed(asked.question)}, {"role": "assistant", "content": text}]


def session(box: Toolbox) -> Scene:
    """Three to five requests for two to four tools; ends after any of them."""
    rng = box.rng
    first = box.archetype()
    archetypes = [first, *box.distractors([first], rng.choice([0, 1, 1, 2, 3]))]
    beside: Archetype | None = None
    if rng.random() < 0.3:
        shown, beside = other_action(rng)
        archetypes.append(shown)
    tools = box.tools(archetypes)
    messages = box.opening()
    for _ in range(rng.choice([2, 3, 3, 4])):
        roll, index = rng.random(), rng.randrange(len(archetypes))
        if roll < 0.6:
            messages += _call(box, archetypes[index], tools[index])
        elif roll < 0.76 and archetypes[index].asks:
            messages += _missing(box, archetypes[index], tools[index])
        else:
            meant = beside if beside and rng.random() < 0.5 else next(iter(box.distractors(archetypes, 1)), None)
            if meant is None or meant.key in KNOWLEDGE:
                continue
            asked = ask(meant, rng, held=False)
            messages += [
                {"role": "user", "content": box.dressed(asked.question)},
                {"role": "assistant", "content": talk.refuse(tools, rng)},
            ]
    if messages[-1:] == [] or messages[-1]["role"] != "assistant":
        return session(box)
    shown_tools = list(tools)
    rng.shuffle(shown_tools)
    return Scene("session", shown_tools, messages)
