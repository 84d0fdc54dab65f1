"""Word lists, split once and for all into words that training may use and words that only the held-out suites use."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import random
import re

__all__ = ["CATALOG", "blend", "invented", "pick", "some", "vocabulary", "words"]

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
_FREE_SHARE = 0.45  # of training's words: put together from the vocabulary, so that copying is the only way
_NAMES = {
    "city",
    "first",
    "last",
    "company",
    "artist",
    "brand",
    "carmodel",
    "country",
    "mountain",
    "river",
    "statecity",
}
_TITLES = {"book", "song", "movie", "hotel", "restaurant", "team", "course", "landmark"}
_THINGS = {
    "animal", "column", "crop", "device", "dish", "event", "food", "hobby", "issue", "job", "legal", "history", "material",
    "plant", "product", "room", "scene", "service", "skill", "table", "task", "topic", "word", "symptom", "label", "color",
    "instrument", "amenity", "message", "adjective", "drug",
}  # fmt: skip
_CODES = {"airport": 3, "ticker": 4, "chessmove": 2}


@functools.cache
def vocabulary(*, capital: bool) -> tuple[str, ...]:
    """Words of the tokenizer's own vocabulary, without any that occurs in a held-out word or in the held-out catalogue."""
    lower, names = (CATALOG / "vocabulary.txt").read_text().split("\n\n")
    kept = {
        part
        for category in _all()
        for word in _all()[category]
        if _held(word)
        for part in re.findall("[a-z]+", word.lower())
    }
    kept.update(re.findall("[a-z]+", (CATALOG / "heldout.txt").read_text().lower()))
    return tuple(word for word in (names if capital else lower).split() if word.lower() not in kept)


def some(rng: random.Random, low: int = 1, high: int = 3, *, capital: bool = False) -> str:
    """A few words of the vocabulary."""
    return " ".join(rng.choice(vocabulary(capital=capital)) for _ in range(rng.randint(low, high)))


def blend(rng: random.Random) -> str:
    """The beginning of one word and the end of another: several tokens that only copying can give."""
    first, last = rng.choice(vocabulary(capital=False)), rng.choice(vocabulary(capital=False))
    word = first[: rng.randint(2, 5)] + last[-rng.randint(2, 5) :]
    return word + rng.choice(["", "", "", "ich", "vik", "opol", "a", "en", "burg", "ane"])


_TONGUES = ("ish", "ese", "ian", "an", "ic", "i")


def _free(category: str, rng: random.Random) -> str | None:
    """A word of a category that is in no list, or none for categories that are closed."""
    if category == "language":
        return blend(rng)[:6].capitalize() + rng.choice(_TONGUES) if rng.random() < 0.6 else None
    if category in _NAMES and rng.random() < 0.3:
        return " ".join(blend(rng).capitalize() for _ in range(2 if rng.random() < 0.2 else 1))
    if category in _THINGS and rng.random() < 0.12:
        return rng.choice([blend(rng), f"{some(rng, 1, 1)} {blend(rng)}"])
    if category in _NAMES:
        return some(rng, 1, 2 if rng.random() < 0.25 else 1, capital=True)
    if category in _TITLES:
        text = some(rng, 1, 3) if rng.random() < 0.7 else some(rng, 1, 2, capital=True)
        return ("The " if rng.random() < 0.3 else "") + text.title()
    if category in _THINGS:
        return some(rng, 1, 2 if rng.random() < 0.6 else 3)
    if category == "street":
        return f"{rng.randint(1, 1999)} {some(rng, 1, 1, capital=True)} {rng.choice('Street Lane Road Avenue Court Way Row Drive Square Alley Close Hill'.split())}"
    if category in {"file", "imagefile"}:
        kinds = "png jpg svg webp" if category == "imagefile" else "txt md csv pdf json yaml log py html docx"
        return rng.choice("_-").join(some(rng, 1, 2).split()) + "." + rng.choice(kinds.split())
    if category in {"folder", "branch", "servicename"}:
        return rng.choice("/-_").join(some(rng, 1, 2).split())
    if category == "chessmove":
        return rng.choice(["", "", "K", "Q", "R", "B", "N"]) + rng.choice("abcdefgh") + rng.choice("12345678")
    if category in _CODES:
        return "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(_CODES[category], 4)))
    return None


def pick(category: str, rng: random.Random, *, held: bool, free: bool = True) -> str:
    """One word of a category; of some categories often an invented one. ``free`` lets training use the vocabulary."""
    if free and not held and rng.random() < _FREE_SHARE:
        word = _free(category, rng)
        if word is not None and not _held_word(category, word):
            return word
    if category in _MADE_UP and rng.random() < 0.25:
        name = invented(rng)
        return f"{name} {invented(rng)}" if category in {"book", "song", "movie", "hotel"} else name
    return rng.choice(words(category, held=held))


def _held_word(category: str, word: str) -> bool:
    return word in words(category, held=True)
