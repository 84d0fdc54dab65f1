"""One request for several calls: lists, "respectively", parts said again, and questions strung together."""

from __future__ import annotations

import random
import re
from typing import Any

from mixquant_training.generate.asking import Asked, arguments, ask, fill, surfaces
from mixquant_training.generate.catalog import Archetype, expand, slots
from mixquant_training.generate.toolbox import Toolbox
from mixquant_training.generate.values import draw, is_scalar
from mixquant_training.generate.wording import swapped
from mixquant_training.generate.words import some

__all__ = ["concatenate", "repeated", "split"]

_LINKS = {
    False: [". Also, ", " and also ", "; ", ". Then ", ", and then ", ". And ", ". Afterwards, ", " and ", ". Next, ", ". In addition, ", ", plus ", ". Besides, ", ". Oh and ", ", as well as ", " / ", "\n", " | ", ". Once that is done, ", ". The next one: ", "; after that ", " & ",
            ". Apart from that, ", ", likewise ", ". That aside, ", ". When that is settled, ", ". For good measure, ", ", followed by ", ". On another note, ", ". Not to forget: ", " + ", ". Second thing: ", " ... "],
    True: [". While you're at it, ", ", furthermore ", ". On top of that "],
}  # fmt: skip


def concatenate(questions: list[str], box: Toolbox) -> str:
    """Several questions in one sentence or a row of them."""
    text = questions[0].rstrip(".?!")
    for question in questions[1:]:
        link = box.rng.choice(_LINKS[box.held])
        if not box.held and box.rng.random() < 0.2:  # words that only their place makes a link
            link = box.rng.choice([". {}, ", ", {} ", "; {}: ", " - {} - ", ". {} "]).format(some(box.rng, 1, 3))
        text += link + question.rstrip(".?!")
    return text


def _listed(items: list[str], rng: random.Random) -> str:
    glue = rng.choice([" and ", ", and ", ", ", " and also ", " as well as "])
    return ", ".join(items[:-1]) + glue + items[-1]


def _vary(archetype: Archetype, asked: Asked) -> list[str]:
    """Slots of a question whose value can be a list in one sentence."""
    return [
        slot
        for slot in asked.said
        if "." not in slot and is_scalar(archetype.param(slot).kind) and len(asked.said[slot]) < 40
    ]


def split(box: Toolbox, archetype: Archetype, count: int, slots: int) -> tuple[str, list[dict[str, Any]]] | None:
    """One sentence for several calls: one slot holds a list, or two slots hold lists "respectively"."""
    rng = box.rng
    template = rng.choice(archetype.questions)
    first = ask(archetype, rng, held=box.held, template=template, optional=0.25)
    free = _vary(archetype, first)
    if len(free) < slots:
        return None
    varied = rng.sample(free, k=slots)
    rows = []
    for _ in range(count):
        row = {slot: draw(archetype.param(slot).kind, rng, held=box.held) for slot in varied}
        rows.append(row)
    for slot in varied:
        if len({row[slot][0] for row in rows}) < count:
            return None
    question = first.question
    calls = [dict(first.arguments) for _ in rows]
    for slot in varied:
        said = first.said[slot]
        if question.count(said) != 1:
            return None
        question = question.replace(said, _listed([row[slot][0] for row in rows], rng))
        for call, row in zip(calls, rows, strict=True):
            call[slot] = row[slot][1]
    if slots == 2:
        tail = "?" if question.endswith("?") else ""
        question = question.rstrip(".?") + rng.choice([" respectively", ", respectively", " (respectively)"]) + tail
    return question, calls


def repeated(box: Toolbox, archetype: Archetype, count: int) -> tuple[str, list[dict[str, Any]]] | None:
    """Training only: a part of a question with two or three slots said again with other values ("5 km to A and 7 km to B")."""
    rng = box.rng
    text = swapped(expand(rng.choice(archetype.questions), rng, 0.15), rng)
    found = list(re.finditer(r"\{(\w+)\}", text))
    if len(found) < 2 or len(found) != len(set(slots(text))) or len(found) != text.count("{"):
        return None
    first = rng.randrange(len(found) - 1)
    last = min(len(found) - 1, first + rng.choice([1, 1, 2]))
    begin, end = found[first].start(), found[last].end()
    part, shared = text[begin:end], [one.group(1) for one in (*found[:first], *found[last + 1 :])]
    if not all(is_scalar(archetype.param(one.group(1)).kind) for one in found[first : last + 1]):
        return None
    same = surfaces(archetype, shared, rng, held=False)
    rows = [surfaces(archetype, slots(part), rng, held=False) for _ in range(count)]
    said = [fill(part, {key: surface for key, (surface, _) in row.items()}) for row in rows]
    glue = rng.choice([" and ", ", and ", ", ", "; ", " as well as ", ", then ", " plus "])
    listed = rng.choice([", ", ", ", "; "]).join(said[:-1]) + glue + said[-1]
    question = fill(text[:begin], {key: surface for key, (surface, _) in same.items()}) + listed
    question += fill(text[end:], {key: surface for key, (surface, _) in same.items()})
    return question, [arguments(archetype, {**same, **row}) for row in rows]
