"""Kinds of values: how a person writes one, which JSON value that is, and how a schema describes it.

A kind is written ``name`` or ``name(arguments)`` in the catalogue; ``parse`` reads it, ``draw`` makes a pair of surface
text and JSON value, ``describe`` the schema of a parameter of that kind.
"""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass
from typing import Any

from mixquant_training.generate import numerals, texts
from mixquant_training.generate.words import pick, words

__all__ = ["Drawn", "Kind", "describe", "draw", "is_scalar", "parse"]

Drawn = tuple[str, Any]


@dataclass(frozen=True)
class Kind:
    """A parsed kind: its name and its arguments as written."""

    name: str
    args: str = ""


@functools.cache
def parse(text: str) -> Kind:
    """``"int(1-40)"`` → ``Kind("int", "1-40")``; ``"word_task"`` and ``"task"`` → ``Kind("text", "task")``."""
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", text)
    if match is None:
        raise ValueError(f"not a kind: {text!r}")
    name, args = match.group(1), match.group(2) or ""
    if name in _DRAW:
        return Kind(name, args)
    return Kind("text", name.removeprefix("word_"))


def is_scalar(kind: Kind) -> bool:
    """Whether several of it can be named in one sentence ("X, Y and Z")."""
    return kind.name not in {"list", "listenum", "listobj", "obj", "map", "pair", "matrix", "bool", "int5"}


def draw(kind: Kind, rng: random.Random, *, held: bool) -> Drawn:
    """Surface text and JSON value. Words come from the side of the split that ``held`` names."""
    return _DRAW[kind.name](kind.args, rng, held)


def _options(args: str) -> list[tuple[str, list[str]]]:
    pairs = []
    for option in args.split("|"):
        value, _, surfaces = option.replace(">=", "\0").replace("<=", "\1").replace("==", "\2").partition("=")
        value = {"\0": ">", "\1": "<", "\2": "="}.get(value[:1], value) if value[:1] in "\0\1\2" else value
        rest = option.partition("=")[2].lstrip("=") if option[:1] in "<>=" else surfaces
        pairs.append((value, rest.split("/") if rest else [value]))
    return pairs


def _enum(args: str, rng: random.Random, held: bool) -> Drawn:
    value, surfaces = rng.choice(_options(args))
    surface = rng.choice(surfaces)
    return (surface.lower() if surface == value and rng.random() < 0.2 else surface), value


def _enum_int(args: str, rng: random.Random, held: bool) -> Drawn:
    surface, value = _enum(args, rng, held)
    return surface, int(value)


def _bool(args: str, rng: random.Random, held: bool) -> Drawn:
    yes, no = args.split("|")
    value = rng.random() < 0.6
    return rng.choice((yes if value else no).split("/")), value


def _text(args: str, rng: random.Random, held: bool) -> Drawn:
    # "Town, ST" is one place, also where tools take lists or several calls are made
    if args == "city" and not held and rng.random() < 0.12:
        state = rng.choice(words("statecity", held=False)).rsplit(" ", 1)[1]
        place = f"{pick('city', rng, held=False)}, {state}"
        return place, place
    word = (
        texts.compose(args, rng, held=held)
        if args in texts.COMPOSED and rng.random() < 0.7
        else pick(args, rng, held=held)
    )
    return word, word


def _code(args: str, rng: random.Random, held: bool) -> Drawn:
    value, _, surfaces = rng.choice(words(args, held=held)).partition("=")
    return rng.choice(surfaces.split("/")), value


def _join(items: list[str], rng: random.Random) -> str:
    if len(items) == 1:
        return items[0]
    glue = rng.choice([" and ", " and ", ", and ", ", "])
    return ", ".join(items[:-1]) + glue + items[-1]


def _span(args: str) -> tuple[str, int, int]:
    inner, _, span = args.rpartition(",")
    low, high = span.split("-")
    return inner, int(low), int(high)


def _list(args: str, rng: random.Random, held: bool) -> Drawn:
    inner, low, high = _span(args)
    kind, drawn = parse(inner), {}
    for _ in range(rng.randint(low, high)):
        surface, value = draw(kind, rng, held=held)
        drawn[surface] = value
    values = list(drawn.values())
    if all(isinstance(value, int | float) for value in values) and rng.random() < 0.3:
        return "[" + ", ".join(str(value) for value in values) + "]", values
    return _join(list(drawn), rng), values


def _listenum(args: str, rng: random.Random, held: bool) -> Drawn:
    chosen = rng.sample(_options(args), k=min(rng.choice([1, 1, 2, 2, 3]), args.count("|") + 1))
    return _join([rng.choice(surfaces) for _, surfaces in chosen], rng), [value for value, _ in chosen]


def fields(args: str) -> list[tuple[str, bool, Kind]]:
    """``"street:street;zip?:zip"`` → name, required, kind."""
    triples = []
    for part in args.split(";"):
        name, _, kind = part.partition(":")
        triples.append((name.rstrip("?"), not name.endswith("?"), parse(kind)))
    return triples


def _listobj(args: str, rng: random.Random, held: bool) -> Drawn:
    inner, low, high = _span(args)
    surfaces, values = [], []
    for _ in range(rng.randint(low, high)):
        drawn = {name: draw(kind, rng, held=held) for name, _, kind in fields(inner)}
        values.append({name: value for name, (_, value) in drawn.items()})
        parts = [surface for surface, _ in drawn.values()]
        if {"quantity", "price"} <= drawn.keys():
            surfaces.append(f"{parts[1]} {parts[0]} at {parts[2]}")
        else:
            surfaces.append(f"{parts[0]}: {parts[1]}" if len(parts) == 2 else " ".join(parts))
    return _join(surfaces, rng), values


def _map(args: str, rng: random.Random, held: bool) -> Drawn:
    pairs = {pick(args.split(",")[0], rng, held=held): rng.randint(1, 300) for _ in range(rng.randint(1, 3))}
    return _join([f"{count} {key}" for key, count in pairs.items()], rng), pairs


def _pair(args: str, rng: random.Random, held: bool) -> Drawn:
    value = [rng.randint(-20, 40), rng.randint(-20, 40)]
    return f"({value[0]}, {value[1]})", value


def _matrix(args: str, rng: random.Random, held: bool) -> Drawn:
    size = rng.choice([2, 2, 3])
    value = [[rng.randint(-9, 20) for _ in range(size)] for _ in range(size)]
    return str(value), value


_DRAW = {
    **numerals.DRAW,
    **texts.DRAW,
    "bool": _bool, "code": _code, "enum": _enum, "enum_int": _enum_int, "list": _list, "listenum": _listenum,
    "listobj": _listobj, "map": _map, "matrix": _matrix, "obj": lambda *_: ("", {}), "pair": _pair, "text": _text,
}  # fmt: skip

_INTEGERS = {"enum_int", "int", "int5", "year"}
_NUMBERS = {"amount", "float", "money", "num", "pctdec", "percent"}


def describe(kind: Kind, rng: random.Random) -> dict[str, Any]:
    """JSON schema of a parameter of this kind, without its description."""
    name = kind.name
    if name in _INTEGERS:
        schema: dict[str, Any] = {"type": "integer"}
        if name == "enum_int":
            schema["enum"] = [int(value) for value, _ in _options(kind.args)]
        return schema
    if name in _NUMBERS:
        return {"type": "number"}
    if name == "bool":
        return {"type": "boolean"}
    if name == "enum":
        return {"type": "string", "enum": [value for value, _ in _options(kind.args)]}
    if name == "list":
        return {"type": "array", "items": describe(parse(_span(kind.args)[0]), rng)}
    if name == "listenum":
        return {"type": "array", "items": {"type": "string", "enum": [value for value, _ in _options(kind.args)]}}
    if name == "pair":
        return {"type": "array", "items": {"type": "number"}}
    if name == "matrix":
        return {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    if name == "map":
        return {"type": "object", "additionalProperties": {"type": "integer"}}
    if name in {"obj", "listobj"}:
        inner = fields(kind.args if name == "obj" else _span(kind.args)[0])
        schema = {
            "type": "object",
            "properties": {key: describe(part, rng) for key, _, part in inner},
            "required": [key for key, required, _ in inner if required],
        }
        return schema if name == "obj" else {"type": "array", "items": schema}
    if name == "date" and rng.random() < 0.25:
        return {"type": "string", "format": "date"}
    return {"type": "string"}
