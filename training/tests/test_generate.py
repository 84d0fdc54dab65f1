"""The data generator: calls fit their schemas, and nothing held out is trained on."""

from __future__ import annotations

import random
import re

import pytest

from mixquant_training.generate import compose
from mixquant_training.generate.attributes import listed, opposites, shuffled
from mixquant_training.generate.catalog import load
from mixquant_training.generate.mix import MIXTURE
from mixquant_training.generate.toolbox import Toolbox, overlaps
from mixquant_training.generate.values import parse
from mixquant_training.generate.words import vocabulary, words


@pytest.mark.slow
@pytest.mark.parametrize("maker", [maker for maker, _ in MIXTURE], ids=lambda maker: maker.__name__)
def test_call_fits_its_schema(maker: object) -> None:
    rng = random.Random(4)
    seen = 0
    for _ in range(120):
        scene = maker(Toolbox(rng))  # type: ignore[operator]
        schemas = {schema["name"]: schema["parameters"] for schema in scene.schemas}
        assert len(schemas) == len(scene.schemas)
        for message in scene.messages:
            assert message["role"] == "tool" or "{" not in message["content"], message
            for call in message.get("tool_calls") or []:
                schema = schemas[call["name"]]
                assert set(schema.get("required", [])) <= set(call["arguments"]) <= set(schema["properties"])
                seen += 1
    assert seen or maker.__name__ in {"no_fit", "small_talk"}  # type: ignore[attr-defined]


def test_held_out_words_are_not_trained_on() -> None:
    assert not {a.key for a in load(held=True)} & {a.key for a in load(held=False)}
    assert not {d.lower() for a in load(held=True) for d in a.questions} & {
        d.lower() for a in load(held=False) for d in a.questions
    }
    free = {*vocabulary(capital=False), *(word.lower() for word in vocabulary(capital=True))}
    things = {*compose._HEADS[True], *compose._MODIFIERS[True], *compose._HELD_VERBS}
    assert len(free) > 10_000
    assert not free & {part for thing in things for part in re.findall("[a-z]+", thing)}
    for category in ("city", "first", "product", "topic"):
        assert not {word.lower() for word in words(category, held=True)} & free
        assert not set(words(category, held=True)) & set(words(category, held=False))


def _runs(held: bool, length: int) -> dict[tuple[str, ...], str]:
    """Runs of so many words of the questions, a value counting as one; at least four are words."""
    found = {}
    for archetype in load(held=held):
        for text in (*archetype.questions, *(ask for _, ask in archetype.asks)):
            said = re.findall(r"[a-z]+|#", re.sub(r"\{[^}]*\}", " # ", text.lower()))
            for start in range(len(said) - length + 1):
                run = tuple(said[start : start + length])
                if length - run.count("#") >= 4:
                    found[run] = text
    return found


@pytest.mark.parametrize("length", [4, 6])
def test_held_out_wording_is_not_trained_on(length: int) -> None:
    held, ours = _runs(True, length), _runs(False, length)
    assert len(held) > 80
    assert not [(held[run], ours[run]) for run in held.keys() & ours.keys()]


def test_held_out_yes_or_no_phrases_are_not_trained_on() -> None:
    def said(kinds: list[str]) -> set[str]:
        found = [parse(kind).args for kind in kinds if kind.startswith("bool(")]
        return {phrase.strip() for one in found for part in one.split("|") for phrase in part.split("/")}

    held = [f"bool({p.kind.args})" for a in load(held=True) for p in a.params if p.kind.name == "bool"]
    ours = [f"bool({p.kind.args})" for a in load(held=False) for p in a.params if p.kind.name == "bool"]
    ours += [kind for _, kind, _, _ in (*listed(), *opposites(), *compose._ATTRIBUTES)]
    theirs = said([*held, *(kind for _, kind, _, _ in compose._HELD_ATTRIBUTES)])
    assert len(theirs) > 10
    assert not theirs & said(ours)


def test_opposites_come_from_both_sides() -> None:
    pairs = {name: kind for name, kind, _, _ in opposites()}
    yes, no = pairs["wet"].removeprefix("bool(").removesuffix(")").split("|")
    assert pairs["dry"] == f"bool({no}|{yes})"
    assert len(pairs) > 100


def test_parameter_order_is_shuffled() -> None:
    rng = random.Random(2)
    archetype = next(one for one in load(held=False) if len(one.params) > 3)
    orders = {tuple(param.names[0] for param in shuffled(archetype, rng).params) for _ in range(40)}
    assert len(orders) > 5
    assert len({frozenset(order) for order in orders}) == 1


def test_value_goes_unnamed_only_where_its_unit_tells() -> None:
    mass, length, height, rate = (one for one in compose._INPUTS if one[0] in {"mass", "length", "height", "rate"})
    assert compose._told_by_unit([mass, length, rate]) == {"mass", "length", "rate"}
    assert compose._told_by_unit([mass, length, height]) == {"mass"}
    for number in range(60):
        rng = random.Random(number)
        archetype = compose.quantity(rng, held=False)
        missing, text = archetype.asks[0]
        assert "{" + missing + "}" not in text


def test_overlap_groups_name_functions_that_exist() -> None:
    keys = {archetype.key: archetype for archetype in load(held=False)}
    groups = [line.split() for line in (compose.CATALOG / "overlaps.txt").read_text().splitlines()]
    assert {key for group in groups for key in group} <= keys.keys()
    assert overlaps(keys["tune_piano"], keys["piano_tuner"])
    assert not overlaps(keys["tune_piano"], keys["get_weather"])
