"""Tasks for the shipped tools, with the results they really give: a question, calls with results, an answer."""

from __future__ import annotations

import datetime
import random
import zoneinfo

from mixquant_training.generate.asking import fill
from mixquant_training.generate.catalog import expand
from mixquant_training.generate.grounded import fact
from mixquant_training.generate.numerals import evaluate
from mixquant_training.generate.own.shown import Work
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import pick

__all__ = ["arithmetic", "clock", "files", "notes"]

_ZONES = {
    "Tokyo": "Asia/Tokyo",
    "Paris": "Europe/Paris",
    "New York": "America/New_York",
    "London": "Europe/London",
    "Sydney": "Australia/Sydney",
    "Berlin": "Europe/Berlin",
    "Nairobi": "Africa/Nairobi",
    "Chicago": "America/Chicago",
    "Dubai": "Asia/Dubai",
    "Madrid": "Europe/Madrid",
    "Mexico City": "America/Mexico_City",
    "Singapore": "Asia/Singapore",
    "Cairo": "Africa/Cairo",
    "Toronto": "America/Toronto",
    "Seoul": "Asia/Seoul",
    "Lisbon": "Europe/Lisbon",
    "Los Angeles": "America/Los_Angeles",
    "Vienna": "Europe/Vienna",
    "Rome": "Europe/Rome",
    "Hong Kong": "Asia/Hong_Kong",
}


def _zone(name: str) -> datetime.tzinfo:
    """The zone, or UTC on a machine without the time zone database."""
    try:
        return zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        return datetime.UTC


def arithmetic(rng: random.Random) -> Work:
    surface, expression = draw(parse("expr"), rng, held=False)
    while "/ 100" in expression:  # a share is written "15% of 80" for this tool
        surface, expression = draw(parse("expr"), rng, held=False)
    value = evaluate(expression)
    ask = expand(
        rng.choice(
            [
                "(what is|what's|calculate|compute|work out|how much is) {x}(|?)",
                "{x} = ?",
                "(please |)(use the calculator|calculate): {x}",
                "i need (the result of |){x}",
            ]
        ),
        rng,
    )
    if rng.random() < 0.25 and "error" not in value:
        more = rng.randint(2, 30)
        sign, word = rng.choice(
            [
                ("+", "add {} to that"),
                ("*", "multiply that by {}"),
                ("-", "subtract {} from that"),
                ("/", "divide the result by {}"),
            ]
        )
        second = f"{value} {sign} {more}"
        final = evaluate(second)
        text = f"{fill(ask, {'x': surface}).rstrip('?')}, then {word.format(more)}"
        return (
            text,
            [("calculator", {"expression": expression}, value), ("calculator", {"expression": second}, final)],
            f"The result is {final}.",
        )
    story = [
        (f"I bought {{a}} {pick('product', rng, held=False)}s for {{b}} dollars each. How much did I pay?", "{a} * {b}", "You paid {v} dollars."),
        ("A bus has {a} rows with {b} seats each. How many seats are there?", "{a} * {b}", "There are {v} seats."),
        ("I had {a} euros and spent {b}. How much is left?", "{a} - {b}", "You have {v} euros left."),
        ("Share {a} apples among {b} children. How many does each get?", "{a} / {b}", "Each gets {v}."),
        ("I walked {a} km on Monday and {b} km on Tuesday. How far in total?", "{a} + {b}", "You walked {v} km in total."),
    ]  # fmt: skip
    if rng.random() < 0.3:
        text, form, said = rng.choice(story)
        values = {"a": str(rng.randint(20, 900)), "b": str(rng.randint(2, 60))}
        expression = fill(form, values)
        value = evaluate(expression)
        return fill(text, values), [("calculator", {"expression": expression}, value)], said.replace("{v}", value)
    final = (
        rng.choice(["{x} is {v}.", "The result is {v}.", "{x} = {v}"]).replace("{x}", expression).replace("{v}", value)
    )
    return (
        fill(ask, {"x": surface}),
        [("calculator", {"expression": expression}, value)],
        final if "error" not in value else "That can't be computed: division by zero.",
    )


def clock(rng: random.Random) -> Work:
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=rng.randint(0, 2_000_000))
    shown = f"{now.isoformat(sep=' ', timespec='seconds')} ({now:%A})"
    roll = rng.random()
    if roll < 0.3:
        city = rng.choice(sorted(_ZONES))
        zone = _ZONES[city]
        there = now.astimezone(_zone(zone))
        shown, city = (
            f"{there.isoformat(sep=' ', timespec='seconds')} ({there:%A})",
            zone if rng.random() < 0.35 else city,
        )
        now = there
        text = expand(
            "(what time is it in|current time in|tell me the time in|how late is it in) {c}(| right now| now)(|?)", rng
        ).replace("{c}", city)
        return text, [("current_time", {"timezone": zone}, shown)], f"It is {now:%H:%M} in {city}."
    if roll < 0.45:
        if rng.random() < 0.5:
            city = rng.choice(["UTC", *sorted(_ZONES)])
            zone = _ZONES.get(city, city)
            there = now.astimezone(_zone(zone))
            text = expand(
                "(which weekday is it|what weekday is today|which day is it|what weekday do we have|what day is today) (|now )in {c}(|?)",
                rng,
            )
            shown = f"{there.isoformat(sep=' ', timespec='seconds')} ({there:%A})"
            return text.replace("{c}", city), [("current_time", {"timezone": zone}, shown)], rng.choice([f"It is {there:%A}.", f"It is {there:%A} in {city}."])  # fmt: skip
        text = expand("(what time is it|what day is it today|what is today's date|which weekday is it)(|?)", rng)
        said = f"It is {now:%H:%M} UTC." if "time" in text else f"Today is {now:%A}, {now:%Y-%m-%d}."
        return text, [("current_time", {}, shown)], said
    if roll < 0.65:
        (first, a), (second, b) = (draw(parse("date"), rng, held=False) for _ in range(2))
        days = (datetime.date.fromisoformat(b) - datetime.date.fromisoformat(a)).days
        text = (
            expand("(how many days|how long) is it from {a} (to|until) {b}?", rng)
            .replace("{a}", first)
            .replace("{b}", second)
        )
        sign = "-" if days < 0 else ""
        return (
            text,
            [("time_between", {"start": a, "end": b}, f"{sign}{abs(days)} days, 0 hours, 0 minutes, 0 seconds")],
            f"It is {days} days.",
        )
    if roll < 0.85:
        surface, day = draw(parse("date"), rng, held=False)
        count = rng.randint(2, 200)
        moved = datetime.date.fromisoformat(day) + datetime.timedelta(days=count)
        text = rng.choice(["which date is {n} days after {d}?", "what is {d} plus {n} days?", "add {n} days to {d}"])
        text = text.replace("{n}", str(count)).replace("{d}", surface)
        return (
            text,
            [("shift_time", {"when": day, "days": count}, f"{moved} 00:00:00 ({moved:%A})")],
            f"That is {moved} ({moved:%A}).",
        )
    (city_a, zone_a), (city_b, zone_b) = rng.sample(sorted(_ZONES.items()), 2)
    moment = now.replace(second=0, tzinfo=None)
    text = f"When it is {moment:%Y-%m-%d} {moment:%H:%M} in {city_a}, what time is it in {city_b}?"
    there = moment + datetime.timedelta(hours=rng.randint(-11, 11))
    call = {"when": f"{moment:%Y-%m-%dT%H:%M}", "source": zone_a, "target": zone_b}
    return text, [("convert_time", call, f"{there} ({there:%A})")], f"It is {there:%H:%M} on {there:%A} in {city_b}."


def notes(rng: random.Random) -> Work:
    one = fact(rng, held=False)
    number = rng.randint(1, 40)
    if rng.random() < 0.45:
        text = expand(
            rng.choice(
                ["(remember|note|please note|keep in mind|save) (that |this: |){x}", "(make|save|take) a note: {x}"]
            ),
            rng,
        ).replace("{x}", one.sentence)
        return (
            text,
            [("save_note", {"text": one.sentence}, f"Saved as note {number}.")],
            rng.choice(["I saved it.", f"Saved as note {number}.", "Noted."]),
        )
    question = expand(
        rng.choice(
            [
                "(what do my notes say about|look in my notes:|from my notes:|check my notes,) {q}",
                "{q} (look it up in my notes|it is in my notes|i noted it|check my notes)",
            ]
        ),
        rng,
    ).replace("{q}", one.question)
    others = [fact(rng, held=False).sentence for _ in range(rng.choice([0, 0, 1, 2]))]
    lines = [one.sentence, *others]
    rng.shuffle(lines)
    return (
        question,
        [
            (
                "recall_notes",
                {"query": one.query},
                "\n".join(f"[note {number + i}] {line}" for i, line in enumerate(lines)),
            )
        ],
        one.answer,
    )


def files(rng: random.Random) -> Work:
    folder, name = pick("folder", rng, held=False), pick("file", rng, held=False)
    path = name if rng.random() < 0.5 else f"{folder}/{name}"
    one = fact(rng, held=False)
    names = [pick("file", rng, held=False) for _ in range(rng.randint(1, 3))]
    listing = "\n".join(f"{item} ({rng.randint(5, 9000)} bytes)" for item in names)
    roll = rng.random()
    if roll < 0.2:
        return (
            f"Which files are in {folder}?",
            [("list_files", {"folder": folder}, listing)],
            f"There are these files: {', '.join(names)}.",
        )
    if roll < 0.3:
        return (
            rng.choice(["list my files", "Which files do I have?", "show all files"]),
            [("list_files", {}, listing)],
            f"There are these files: {', '.join(names)}.",
        )
    if roll < 0.55:
        text = rng.choice(
            [
                f"What does {path} say?",
                f"read {path}",
                f"{one.question} It is in {path}.",
                f"Look into {path}: {one.question}",
                f"open the file {path} please",
            ]
        )
        said = one.answer if one.question in text else f"It says: {one.sentence}"
        return text, [("read_file", {"path": path}, f"1\t{one.sentence}")], said
    if roll < 0.75:
        text = rng.choice(
            [
                f'Write "{one.sentence}" to {path}',
                f"create the file {path} with this text: {one.sentence}",
                f"save this in {path}: {one.sentence}",
            ]
        )
        return (
            text,
            [("write_file", {"path": path, "text": one.sentence}, f"Wrote {len(one.sentence)} bytes to {path}.")],
            f"I wrote it to {path}.",
        )
    if roll < 0.87:
        word = pick("word", rng, held=False)
        text = rng.choice([f"Which files mention {word}?", f"find {word} in my files", f'where does "{word}" occur?'])
        return text, [("find_in_files", {"text": word}, f"{path}:{rng.randint(1, 90)}: {word}")], f"It is in {path}."
    old, new = pick("word", rng, held=False), pick("word", rng, held=False)
    return (
        f"In {path}, replace {old} with {new}",
        [("replace_in_file", {"path": path, "old": old, "new": new}, f"Replaced in {path}.")],
        f"I replaced {old} with {new} in {path}.",
    )
