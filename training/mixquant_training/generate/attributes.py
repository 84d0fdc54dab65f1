"""What a parameter can be about: attributes with their phrases from ``catalog/attributes.txt``, and invented ones.

A line is ``name :: kind :: description :: phrase / phrase``; ``{v}`` is the value (``{v.key}`` a field of it).
"""

from __future__ import annotations

import dataclasses
import functools
import random

from mixquant_training.generate.catalog import Archetype, Param
from mixquant_training.generate.values import parse
from mixquant_training.generate.words import CATALOG, some

__all__ = ["Attribute", "attribute", "either", "listed", "opposites", "shuffled", "widened"]

Attribute = tuple[str, str, str, list[str]]
"""Name, kind, description, phrases."""


@functools.cache
def listed() -> tuple[Attribute, ...]:
    """The attributes of the catalogue."""
    rows = []
    for line in (CATALOG / "attributes.txt").read_text().splitlines():
        name, kind, description, phrases = line.split(" :: ")
        rows.append((name, kind, description, phrases.split(" / ")))
    return tuple(rows)


@functools.cache
def opposites() -> tuple[Attribute, ...]:
    """Yes-or-no attributes whose no is said by a contrary of its own; each pair from both sides."""
    rows = []
    for line in (CATALOG / "opposites.txt").read_text().splitlines():
        names, *said, descriptions = line.split(" :: ")
        sides = zip(names.split(" / "), descriptions.split(" / "), (said, said[::-1]), strict=True)
        rows += [(name, f"bool({yes}|{no})", description, ["{v}"]) for name, description, (yes, no) in sides]
    return tuple(rows)


_PHRASES = [
    "with the {h} {v}", "{h} {v}", "{h}: {v}", "{h} = {v}", "{v} as the {h}", "whose {h} is {v}", "{h} set to {v}", "with {v} for the {h}",
    "the {h} is {v}", "put {v} as {h}", "{h} should be {v}", "let the {h} be {v}", "use {v} as its {h}", "and {v} is the {h}", "take {h} {v}",
]  # fmt: skip
_KINDS = [
    "word", "word", "topic", "sentence", "person", "first", "city", "company", "product", "id(N)", "id(Q)", "int(0-40)", "int(1-900)", "int(1000-90000)", "num", "num",
    "float(0-1,2)", "float(-50-50,2)", "percent", "money", "date", "date", "time", "email", "url", "year", "list(word,2-4)", "list(int,2-5)", "list(first,2-3)", "file",
]  # fmt: skip


def invented(rng: random.Random) -> Attribute:
    """An attribute whose name, kind and options nobody wrote: only the schema tells what to do."""
    name = some(rng, 1, 2)
    roll = rng.random()
    if roll < 0.2:
        options = [some(rng, 1, 1 if rng.random() < 0.7 else 2) for _ in range(rng.randint(2, 5))]
        written = [f"{option.replace(' ', '_')}={option}" if " " in option else option for option in options]
        kind = f"enum({'|'.join(dict.fromkeys(written))})"
        phrases = rng.sample([*_PHRASES, "{v}", "{v} {h}", "the {v} {h}", "a {v} one"], 3)
    elif roll < 0.32:
        yes = rng.sample(
            [
                "with {h}",
                "{h} on",
                "make it {h}",
                "{h} please",
                "turn {h} on",
                "including {h}",
                "{h}: yes",
                "it is {h}",
            ],
            3,
        )
        no = rng.sample(
            [
                "without {h}",
                "no {h}",
                "{h} off",
                "not {h}",
                "turn {h} off",
                "leave out {h}",
                "{h}: no",
                "it is not {h}",
            ],
            3,
        )
        kind = f"bool({'/'.join(yes)}|{'/'.join(no)})".replace("{h}", name)
        phrases = ["{v}"]
    else:
        kind, phrases = rng.choice(_KINDS), rng.sample(_PHRASES, 3)
    of = rng.choice(["{n}", "The {n} to use", "{n} of the item", "Which {n}", "Value for {n}", "{n} wanted"]).replace(
        "{n}", name
    )
    of = f"Whether {name} applies" if kind.startswith("bool") else of[0].upper() + of[1:]
    return name.replace(" ", "_"), kind, of, [phrase.replace("{h}", name) for phrase in phrases]


def attribute(rng: random.Random) -> Attribute:
    """One of the catalogue mostly."""
    roll = rng.random()
    return rng.choice(listed()) if roll < 0.6 else rng.choice(opposites()) if roll < 0.74 else invented(rng)


def either(choices: list[str]) -> str:
    """A choice in the catalogue's grammar."""
    return f"({'|'.join(choices)})" if len(choices) > 1 else choices[0]


def widened(archetype: Archetype, rng: random.Random) -> Archetype:
    """The archetype with one to three optional parameters more; each question may mention them, mostly it does not."""
    taken = {name for param in archetype.params for name in param.names}
    kinds = {param.kind.name for param in archetype.params if param.kind.name != "bool"}
    params: list[Param] = []
    tails: list[str] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        name, kind, description, phrases = attribute(rng)
        if name in taken or parse(kind).name in kinds - {"enum"} or any(p.names[0] == name for p in params):
            continue
        params.append(Param((name,), parse(kind), description, False))
        tails.append(f"[{rng.choice([', ', ' ', ', '])}{either(phrases)}]".replace("{v", "{" + name))
    questions = [_with_tail(question, "".join(tails)) for question in archetype.questions]
    order = [*archetype.params, *params]
    return dataclasses.replace(archetype, params=order, questions=questions)


def shuffled(archetype: Archetype, rng: random.Random) -> Archetype:
    """The archetype with its parameters in another order, so that the order of a request's values tells nothing."""
    return dataclasses.replace(archetype, params=rng.sample(archetype.params, len(archetype.params)))


def _with_tail(question: str, tail: str) -> str:
    for end in ("(|?)", "?", "."):
        if question.endswith(end):
            return question.removesuffix(end) + tail + end
    return question + tail
