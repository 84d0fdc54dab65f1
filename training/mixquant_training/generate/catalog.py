"""The catalogue of function archetypes and its question grammar.

An archetype in ``catalog/*.txt``::

    @ name, other_name :: What the function does
    parameter,other_parameter:kind What it means          (``parameter?`` optional, ``parameter?default`` with a default)
    - question (with|having) {parameter}[ an optional part with {other}]
    ~parameter a question that leaves this required parameter out
    > result_key:kind, other_key:kind
    < An answer that uses {parameter} and {result_key}.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass, field

from mixquant_training.generate.values import Kind, fields, parse
from mixquant_training.generate.words import CATALOG

__all__ = ["HINTS", "Archetype", "Param", "expand", "load", "slots"]


@dataclass(frozen=True)
class Param:
    """One parameter. ``default`` is text for the description; it never appears in a call."""

    names: tuple[str, ...]
    kind: Kind
    description: str
    required: bool
    default: str = ""


@dataclass
class Archetype:
    """One function: everything a scene needs to show a tool, ask for it, call it and answer from its result."""

    names: tuple[str, ...]
    description: str
    domain: str
    params: list[Param] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    asks: list[tuple[str, str]] = field(default_factory=list)
    result: list[tuple[str, Kind]] = field(default_factory=list)
    answer: str = ""

    @property
    def key(self) -> str:
        """The first name of the function."""
        return self.names[0]

    def param(self, name: str) -> Param:
        """The parameter a slot belongs to (``address.street`` belongs to ``address``)."""
        return next(param for param in self.params if param.names[0] == name.split(".")[0])


def slots(template: str) -> list[str]:
    """Slot names in order."""
    return re.findall(r"\{([\w.]+)\}", template)


def expand(template: str, rng: random.Random, optional: float = 0.4) -> str:
    """Choose among ``(a|b)`` and keep each ``[part]`` with probability ``optional``; slots stay."""
    while True:
        match = re.search(r"\(([^()\[\]]*\|[^()\[\]]*)\)|\[([^\[\]]*)\]", template)
        if match is None:
            return _tidy(template)
        if match.group(1) is not None:
            chosen = rng.choice(match.group(1).split("|"))
        else:
            chosen = match.group(2) if rng.random() < optional else ""
        template = template[: match.start()] + chosen + template[match.end() :]


def _tidy(text: str) -> str:
    """Without the gaps that dropped parts leave: doubled spaces and commas, a comma at the end."""
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" ?,(?: ?,)+", ",", text).replace(" ,", ",")
    return re.sub(r"[,:;]+$", "", text.strip(" ,")).strip()


def _split_top(text: str) -> list[str]:
    return re.split(r", (?=\w+:)", text)


def _read(name: str) -> list[Archetype]:
    found: list[Archetype] = []
    for number, line in enumerate((CATALOG / f"{name}.txt").read_text().splitlines(), 1):
        try:
            _line(line, name, found)
        except (ValueError, StopIteration, IndexError) as error:
            raise ValueError(f"{name}.txt line {number}: {error}: {line}") from error
    for archetype in found:
        _check(archetype)
    return found


def _line(line: str, domain: str, found: list[Archetype]) -> None:
    mark, rest = line[:2], line[2:]
    if mark == "@ ":
        names, _, description = rest.partition(" :: ")
        found.append(Archetype(tuple(names.split(", ")), description, domain))
    elif mark == "- ":
        found[-1].questions.append(rest)
    elif mark == "> ":
        pairs = [part.partition(":") for part in _split_top(rest)]
        found[-1].result = [(key, parse(kind)) for key, _, kind in pairs]
    elif mark == "< ":
        found[-1].answer = rest
    elif line[:1] == "~":
        name, _, text = line[1:].partition(" ")
        found[-1].asks.append((name, text))
    else:
        found[-1].params.append(_param(line))


def _param(line: str) -> Param:
    head, _, rest = line.partition(":")
    match = re.match(r"(\w+\((?:[^()]|\([^()]*\))*\)|\w+)(?: (.*))?$", rest)
    if match is None:
        raise ValueError("not a parameter")
    first, _, others = head.partition(",")
    name, mark, default = first.partition("?")
    names = (name, *(other for other in others.split(",") if other))
    return Param(names, parse(match.group(1)), match.group(2) or "", not mark, default)


def _check(archetype: Archetype) -> None:
    """Every question names every required parameter outside its optional parts, and no unknown one."""
    for question in archetype.questions:
        bare = re.sub(r"\[[^\[\]]*\]", "", question)
        bare_slots = {slot.split(".")[0] for slot in slots(bare)}
        missing = {param.names[0] for param in archetype.params if param.required} - bare_slots
        if missing:
            raise ValueError(f"{archetype.key}: {question!r} lacks {missing}")
        for slot in slots(question):
            param = archetype.param(slot)
            if "." in slot and slot.split(".")[1] not in {name for name, _, _ in fields(param.kind.args)}:
                raise ValueError(f"{archetype.key}: no field {slot}")


HINTS = ("hints", "nudges", "favors")
"""Files whose requests share few or no words with their schemas."""
TRAIN = ("everyday", "numbers", "money", "travel", "people", "systems", "errands", "trades", *HINTS)


@functools.cache
def load(*, held: bool) -> tuple[Archetype, ...]:
    """The archetypes of one side of the split: training's, or the held-out ones."""
    names = ("heldout",) if held else TRAIN
    return tuple(archetype for name in names for archetype in _read(name))
