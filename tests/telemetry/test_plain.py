"""What tools give may be anything: JSON keeps what stands around what it cannot say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.telemetry.plain import DEEPEST, json_of, text_of


class Unspeakable:
    """Says nothing of itself."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def circle() -> list[Any]:
    value: list[Any] = ["a"]
    value.append(value)
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({("a", 1): 2}, "('a', 1)"),
        (circle(), "(a circle)"),
        (nested(5_000), f"(nested deeper than {DEEPEST} levels)"),
        pytest.param(10**5_000, "(int whose text cannot be had: ValueError)", id="long number"),
        (Unspeakable(), "(Unspeakable whose text cannot be had: RuntimeError)"),
        ({Unspeakable(): [Unspeakable()]}, "(Unspeakable whose text cannot be had: RuntimeError)"),
        ({1, 2}, "{1, 2}"),
        (b"\x00\xff", "\\\\x00"),
    ],
)
def test_what_json_cannot_say_is_said_in_words_in_its_place(odd: Any, words: str) -> None:
    written = json_of({"before": "b", "odd": odd, "after": [1, 2.5, None, True, math.inf, 10**30]})
    read = json.loads(written)
    assert (read["before"], read["after"]) == ("b", [1, 2.5, None, True, math.inf, 10**30])
    assert words in written


def test_text_that_can_be_had_is_the_text() -> None:
    assert text_of(7) == "7"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_plain_values_are_written_as_they_are_beside_an_odd_one(value: Any) -> None:
    assert json.loads(json_of(value)) == value
    assert json.loads(json_of([value, Unspeakable()]))[0] == value
