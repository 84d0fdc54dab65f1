"""Dates, times, names, numbers of things and small sentences: text-like values."""

from __future__ import annotations

import calendar
import datetime
import random
import string
from collections.abc import Callable
from typing import Any

from mixquant_training.generate.words import pick, some, words

__all__ = ["COMPOSED", "DRAW", "compose"]


def _date(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    day = datetime.date(rng.randint(2018, 2031), 1, 1) + datetime.timedelta(days=rng.randint(0, 364))
    name, short, number = calendar.month_name[day.month], calendar.month_abbr[day.month], day.day
    suffix = "th" if 10 < number < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    forms = [
        day.isoformat(), day.isoformat(), f"{name} {number}, {day.year}", f"{number} {name} {day.year}",
        f"{name} {number}{suffix}, {day.year}", f"the {number}{suffix} of {name} {day.year}",
        f"{short} {number} {day.year}", f"{number}.{day.month}.{day.year}" if number > 12 else day.isoformat(),
        f"{day.month}/{number}/{day.year}" if number > 12 else day.isoformat(),
    ]  # fmt: skip
    return rng.choice(forms), day.isoformat()


def _date_in(form: str) -> Callable[[str, random.Random, bool], tuple[str, Any]]:
    """A date whose value is written in another form than ISO; the description says which."""

    def drawn(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
        surface, value = _date(args, rng, held)
        return surface, datetime.date.fromisoformat(value).strftime(form)

    return drawn


def _time(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    hour, minute = rng.randint(0, 23), rng.choice([0, 0, 0, 15, 30, 45, rng.randint(1, 59)])
    value = f"{hour:02}:{minute:02}"
    half, twelve = ("am" if hour < 12 else "pm"), hour % 12 or 12
    forms = [value, f"{twelve}:{minute:02} {half}", f"{twelve}:{minute:02}{half}"]
    if minute == 0:
        forms += [f"{twelve} {half}", f"{twelve}{half}"]
        if hour == 12:
            forms.append("noon")
    return rng.choice(forms), value


def _datetime(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    day_text, day = _date("", rng, held)
    clock_text, clock = _time("", rng, held)
    value = f"{day}T{clock}:00"
    return rng.choice([value, f"{day_text} at {clock_text}", f"{day_text}, {clock_text}"]), value


def _id(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    prefix = args if rng.random() < 0.7 else "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3)))
    digits = "".join(rng.choices(string.digits, k=rng.randint(2, 6)))
    tail = "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(2, 4)))
    form = rng.choice(["{p}-{d}", "{p}-{d}", "{p}{d}", "{p}_{d}", "{d}", "{p}-{d}-{t}", "{t}{d}", "{p}{t}"])
    value = form.format(p=prefix, d=digits, t=tail)
    return value, value


def _person(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    name = f"{pick('first', rng, held=held)} {pick('last', rng, held=held)}"
    return name, name


def _host(rng: random.Random, held: bool) -> str:
    name = pick("company", rng, held=held).split()[0].lower()
    return f"{name}.{rng.choice(['com', 'org', 'net', 'io', 'example', 'co'])}"


def _email(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    first, last = pick("first", rng, held=held).lower(), pick("last", rng, held=held).lower()
    user = rng.choice([first, f"{first}.{last}", f"{first[0]}{last}", f"{first}{rng.randint(1, 99)}"])
    return (f"{user}@{_host(rng, held)}",) * 2


def _phone(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    digits = "".join(rng.choices(string.digits, k=10))
    form = rng.choice(["+1{}", "{0}-{1}-{2}", "+44 {0} {1} {2}", "{}", "({0}) {1}-{2}"])
    parts = (digits[:3], digits[3:6], digits[6:])
    return (form.format(digits) if form in {"+1{}", "{}"} else form.format(*parts),) * 2


def _url(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    path = rng.choice(
        ["", "/", "/api/v1/items", f"/page/{rng.randint(1, 99)}", "/docs/start", f"/q?id={rng.randint(1, 999)}"]
    )
    return (f"https://{rng.choice(['', 'www.', 'api.'])}{_host(rng, held)}{path}",) * 2


def _username(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    return (f"{pick('first', rng, held=held).lower()}{rng.choice(['_', '.', ''])}{rng.randint(1, 999)}",) * 2


def _year(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    value = rng.choice([rng.randint(1990, 2030), rng.randint(1600, 1990)])
    return str(value), value


def _version(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    value = f"{rng.choice(['', 'v'])}{rng.randint(0, 12)}.{rng.randint(0, 30)}.{rng.randint(0, 20)}"
    return value, value


_SUBJECTS = "the tall gardener|my neighbour|our new manager|the old captain|a small robot|the night train|her cousin|the choir|a grey cat|the second team|this bakery|the mountain guide|their teacher|the last visitor".split(
    "|"
)
_VERBS = "finished|painted|carried|forgot|repaired|welcomed|described|lost|found|ordered|cleaned|opened|photographed|replaced".split(
    "|"
)
_OBJECTS = "the wooden bridge|three boxes of apples|a letter from abroad|the broken window|every single ticket|an old map|the evening report|a pair of gloves|the front gate|two cups of tea|the missing keys|a song about rain|the garden wall|some very good news".split(
    "|"
)
_ENDINGS = "|before lunch|on the way home|last winter|without a word|in the rain|for the first time|again|near the harbour|with great care|after the meeting".split(
    "|"
)
COMPOSED = {"sentence", "message", "review"}


def compose(category: str, rng: random.Random, *, held: bool = False) -> str:
    """A small sentence of its own, so that free text is copied and not remembered."""
    if not held and rng.random() < 0.5:
        return _loose(rng)
    end = rng.choice(_ENDINGS)
    text = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}{' ' + end if end else ''}"
    return text[0].upper() + text[1:]


_LOOSE = [
    "the {a} {b} is {c} the {d}", "{n} {c} a {a} of {b} and {d}", "please keep the {a} away from the {b}", "{a}, {b} and {c} for {n}",
    "we {a} {b} every {c}", "do not forget the {a} {b}", "{n} has moved the {a} to {b}", "no {a} before {b}", "the {a} needs {k} {b}",
    "{n} will be {k} minutes late", "{a} at {k}, {b} at {j}", "order {k} {a} {b} for {n}", "call {n} about the {a}", "{a} was {b}; {c} was not",
]  # fmt: skip


def _loose(rng: random.Random) -> str:
    """Words of the vocabulary in a small frame: grammar hardly helps, so it must be copied."""
    values = {key: some(rng, 1, 1) for key in "abcd"} | {
        "n": some(rng, 1, 1, capital=True),
        "k": str(rng.randint(2, 90)),
        "j": str(rng.randint(2, 900)),
    }
    text = rng.choice(_LOOSE).format(**values)
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text


def _cell(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    """A short name of a place: "B7", "k12", "3F", "Q-4"."""
    letter, number = rng.choice(string.ascii_letters), rng.randint(1, 40)
    form = rng.choice(["{l}{n}", "{l}{n}", "{n}{l}", "{l}-{n}", "{l}{l}{n}"])
    value = form.format(l=letter, n=number)
    return _cell(args, rng, held) if value in words("chessmove", held=True) else (value, value)


DRAW = {
    "cell": _cell,
    "date": _date, "date_eu": _date_in("%d.%m.%Y"), "date_us": _date_in("%m/%d/%Y"), "datetime": _datetime, "domain": lambda a, r, h: (_host(r, h),) * 2, "email": _email, "id": _id,
    "month": lambda a, r, h: (r.choice(list(calendar.month_name)[1:]),) * 2, "person": _person, "phone": _phone,
    "time": _time, "url": _url, "username": _username, "version": _version,
    "weekday": lambda a, r, h: (r.choice(list(calendar.day_name)),) * 2, "year": _year,
    "zip": lambda a, r, h: ("".join(r.choices(string.digits, k=5)),) * 2,
}  # fmt: skip
