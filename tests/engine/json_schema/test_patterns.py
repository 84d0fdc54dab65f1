"""Patterns read and written again: the same language, as far as a grammar holds it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.json_schema.patterns import pattern_of, pattern_weight
from mixquant_agents.errors import GrammarError

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"[\dx-z]", r"\.", "(ab)", "(?:a|bc)", "-", r"[\]^-]"])
REPEATED = st.tuples(ATOMS, st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "+?"])).map("".join)
BRANCHES = st.lists(REPEATED, min_size=1, max_size=4).map("".join)
PATTERNS = st.tuples(
    st.sampled_from(["", "^"]), st.lists(BRANCHES, min_size=1, max_size=3).map("|".join), st.sampled_from(["", "$"])
).map(lambda parts: f"{parts[0]}(?:{parts[1]}){parts[2]}")
TEXTS = st.text(st.sampled_from("abcxyz01.-]^"), max_size=8)


@given(PATTERNS, TEXTS)
def test_whole_pattern_matches_where_the_pattern_occurs(source: str, text: str) -> None:
    pattern = pattern_of(source, "#")
    assert pattern.problem is None
    assert (re.fullmatch(pattern.whole(), text) is not None) == (re.search(source, text) is not None)
    assert pattern.searches(text) == (re.search(source, text) is not None)


@given(PATTERNS, TEXTS, st.integers(0, 5), st.integers(0, 5))
def test_length_moves_into_the_pattern_or_stays_out(source: str, text: str, least: int, more: int) -> None:
    fitted = pattern_of(source, "#").with_length(least, least + more)
    if fitted is not None:
        expected = re.search(source, text) is not None and least <= len(text) <= least + more
        assert (re.fullmatch(fitted.whole(), text) is not None) == expected


@given(st.lists(REPEATED, min_size=1, max_size=3).map("".join))
def test_alternatives_at_the_top_stay_together(body: str) -> None:
    """The parser takes a common beginning out of alternatives: written again, it must not bind to the first alone."""
    for source in (f"{body}|x", f"^{body}|^x", f"{body}a|{body}b"):
        pattern = pattern_of(source, "#")
        for text in ("x", "ax", "xa", "aa", "b"):
            assert (re.fullmatch(pattern.whole(), text) is not None) == (re.search(source, text) is not None)


@pytest.mark.parametrize(
    ("source", "length", "fitted"),
    [
        ("^[A-Z]+$", (0, 4), "^[A-Z]{1,4}$"),
        ("^[a-z][a-z0-9_]*$", (3, 8), "^[a-z][a-z0-9_]{2,7}$"),
        (r"^\d{4}$", (0, 9), r"^\d{4,4}$"),
        (r"^v\d*$", (2, None), r"^v\d{1,}$"),
    ],
)
def test_length_in_common_patterns(source: str, length: tuple[int, int | None], fitted: str) -> None:
    pattern = pattern_of(source, "#").with_length(*length)
    assert pattern is not None
    assert pattern.whole() == fitted


@pytest.mark.parametrize("source", ["^(ab)+$", "^[a-z]+-[a-z]+$", "[a-z]+", "^(a|bc)$", r"^\d{4}$"])
def test_length_that_no_single_repetition_can_take_stays_out(source: str) -> None:
    assert pattern_of(source, "#").with_length(5, 7) is None


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("^(?=a)b$", "look-around"), ("(?<!a)b", "look-around"), (r"(a)\1", "back reference"), (r"a\b", "boundary"),
        ("(^a)|b", "anchor"), ("a$|b", "anchor"), ("(?i)a", "flags"), ("(?i:a)", "flags"), ('"', "escapes"),
        (r"\\", "escapes"), ("[ -~]", "escapes"), ("\n", "escapes"), ("(?>a)", "atomic"), ("a++", "possessive"),
    ],
)  # fmt: skip
def test_pattern_that_no_grammar_holds_says_why(source: str, problem: str) -> None:
    assert problem in str(pattern_of(source, "#").problem)


@pytest.mark.parametrize("source", ["[", r"\p{L}", "a{4,2}", "(?P<n>a", "*"])
def test_pattern_that_nobody_can_read_is_refused(source: str) -> None:
    with pytest.raises(GrammarError, match="cannot be read"):
        pattern_of(source, "#/x")


def test_weight_multiplies_repetitions() -> None:
    assert pattern_weight("^(a{1,200}){1,200}$") > 40_000
    assert pattern_weight("^[a-z]+$") < 10
