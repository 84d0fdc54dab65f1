"""Word lists, split once and for all into words that training may use and words that only the held-out suites use."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import random

__all__ = ["CATALOG", "invented", "pick", "words"]

CATALOG = pathlib.Path(__file__).parents[1] / "catalog"
_SYLLABLES = (
    "ba ke lo mi nu ra se ti vo za dri fel gor han jun kal mor pel quin rus sal tor vel wen yas bry cly ond esk".split()
)
_HELD_SHARE = 5  # one word in five is held out


@functools.cache
def _all() -> dict[str, list[str]]:
    lists = {}
    for line in (CATALOG / "words.txt").read_text().splitlines():
        name, _, rest = line.partition(": ")
        separator = ";" if ";" in rest else ","
        lists[name] = [word.strip() for word in rest.split(separator)]
    return lists


def _held(word: str) -> bool:
    return hashlib.sha256(word.encode()).digest()[0] % _HELD_SHARE == 0


@functools.cache
def words(category: str, *, held: bool) -> tuple[str, ...]:
    """The words of a category that belong to one side of the split; all of them where a side would be empty."""
    everything = _all()[category]
    chosen = tuple(word for word in everything if _held(word) == held)
    return chosen or tuple(everything)


def invented(rng: random.Random) -> str:
    """A made-up name, so that values are copied and not remembered."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


_MADE_UP = {
    "city",
    "first",
    "last",
    "company",
    "hotel",
    "restaurant",
    "artist",
    "product",
    "team",
    "book",
    "song",
    "movie",
}


def pick(category: str, rng: random.Random, *, held: bool) -> str:
    """One word of a category; of some categories often an invented one."""
    if category in _MADE_UP and rng.random() < 0.25:
        name = invented(rng)
        return f"{name} {invented(rng)}" if category in {"book", "song", "movie", "hotel"} else name
    return rng.choice(words(category, held=held))
