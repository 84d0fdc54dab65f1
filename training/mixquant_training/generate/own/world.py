"""Longer work with the shipped tools: sums, files, documents, notes and times that build on each other."""

from __future__ import annotations

import datetime
import random

from mixquant_training.generate.grounded import Fact, fact
from mixquant_training.generate.own.shown import Call, Work, numbered
from mixquant_training.generate.own.units import UNITS, conversion
from mixquant_training.generate.texts import compose
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import pick, some

__all__ = ["document_work", "file_work", "measures", "note_work", "passages", "reckoning", "times"]


def _shown(value: float) -> str:
    return f"{value:.15g}"


def _calc(expression: str, value: float) -> Call:
    return "calculator", {"expression": expression}, _shown(value)


def reckoning(rng: random.Random) -> list[Work]:
    """Sums in words and stories; then perhaps another with the result."""
    a, b, c = rng.randint(2, 999), rng.randint(2, 99), rng.randint(2, 400)
    p, things, who = rng.randint(2, 90), f"{some(rng, 1, 1)}s", pick("first", rng, held=False)
    numbers = [rng.choice([rng.randint(1, 99), rng.randint(100, 9999)]) for _ in range(rng.randint(2, 5))]
    listed = ", ".join(map(str, numbers[:-1])) + rng.choice([" and ", ", ", " and "]) + str(numbers[-1])
    plus = "+".join(map(str, numbers))
    text, expression, value, answer = rng.choice([
        (rng.choice([f"Add up {listed}.", f"What do {listed} make together?", f"sum of {listed}?"]), plus, sum(numbers), "The sum is {v}."),
        (rng.choice([f"What's the average of {listed}?", f"Work out the mean of these: {listed}", f"average {listed}"]), f"mean({', '.join(map(str, numbers))})", sum(numbers) / len(numbers), "The average is {v}."),
        (rng.choice([f"How much is {p}% of {a}?", f"{p} percent of {a}?", f"take {p}% of {a}", f"find {p} % of {a}"]), f"{p}% of {a}", p * a / 100, "{v}"),
        (rng.choice([f"How much is {b} to the power {c % 5 + 2}?", f"{b} ^ {c % 5 + 2}", f"raise {b} to the {c % 5 + 2}th power"]), f"{b}^{c % 5 + 2}", b ** (c % 5 + 2), "The result is {v}."),
        (rng.choice([f"square root of {b * b}", f"what's the root of {b * b}?", f"sqrt of {b * b}?"]), f"sqrt({b * b})", b, "The square root is {v}."),
        (rng.choice([f"Split {a * b} by {b}.", f"{a * b} over {b}?", f"what do i get when {a * b} is divided by {b}"]), f"{a * b}/{b}", a, "The result is {v}."),
        (rng.choice([f"{a} take away {b}", f"What remains when {b} is taken from {a}?", f"{a} less {b}?"]), f"{a}-{b}", a - b, "The result is {v}."),
        (rng.choice([f"{a} by {b}, multiplied", f"product of {a} and {b}", f"how much is {b} times {a}?"]), f"{b}*{a}" if False else f"{a}*{b}", a * b, "The product is {v}."),
        (f"A {things[:-1]} for {a} euros gets {p}% cheaper. What is the new price?", f"{a} - {p}% of {a}", a - p * a / 100, "The new price is {v} euros."),
        (f"A bill of {a} dollars, plus {p}% tip. How much in all?", f"{a} + {p}% of {a}", a + p * a / 100, "In all it is {v} dollars."),
        (f"{who} has {b} crates of {c} {things} in each. How many {things} are there in total?", f"{b}*{c}", b * c, "There are {v} " + things + "."),
        (f"{who} earns {c} a week. How much in {b} weeks?", f"{c}*{b}", b * c, "{v}"),
        (f"There were {a + c} {things}, {c} got lost. How many are left?", f"{a + c}-{c}", a, "{v} are left."),
        (f"{a * b} {things} are packed in boxes of {b}. How many boxes?", f"{a * b}/{b}", a, "It takes {v} boxes."),
        (f"We drove {a} km, then {c} km, then {b} km. How far was it altogether?", f"{a}+{c}+{b}", a + b + c, "It was {v} km."),
        (f"{b} tickets at {c} dollars and {a} dollars for food: the total?", f"{b}*{c}+{a}", a + b * c, "The total is {v} dollars."),
    ])  # fmt: skip
    works: list[Work] = [(text, [_calc(expression, value)], answer.replace("{v}", _shown(value)))]
    while rng.random() < 0.3 and len(works) < 3:
        k, old = rng.randint(2, 60), _shown(value)
        sign, said = rng.choice([("*", f"And that times {k}?"), ("+", f"add {k} to it"), ("-", f"Now minus {k}."), ("/", f"and divided by {k}?"), ("*", f"Multiply the result by {k}."),
                                 ("+", f"plus {k} more?"), ("*", f"What if there are {k} times as many?"), ("/", f"Share that among {k} people.")])  # fmt: skip
        value = {"*": value * k, "+": value + k, "-": value - k, "/": value / k}[sign]
        works.append(
            (
                said,
                [_calc(f"{old}{sign}{k}", value)],
                rng.choice(["That is {v}.", "It is {v}.", "{v}"]).replace("{v}", _shown(value)),
            )
        )
    return works


def measures(rng: random.Random) -> list[Work]:
    """Conversions of units, temperatures among them."""
    if rng.random() < 0.15:
        value: float = rng.randint(-40, 250)
        (a, said_a), (b, said_b) = rng.choice(
            [
                (("degC", "degrees Celsius"), ("degF", "Fahrenheit")),
                (("degF", "degrees Fahrenheit"), ("degC", "Celsius")),
            ]
        )
        result = value * 9 / 5 + 32 if a == "degC" else (value - 32) * 5 / 9
        text = rng.choice(
            [
                f"How many degrees {said_b} are {value} {said_a}?",
                f"turn {value} {said_a} into {said_b}",
                f"{value} {said_a}, what's that in {said_b}?",
            ]
        )
        return [
            (
                text,
                [("convert_units", {"value": value, "source": a, "target": b}, f"{value} {a} = {result:.9g} {b}")],
                f"That is {result:.9g} degrees {said_b}.",
            )
        ]
    value, a, b, call = conversion(rng)
    text = rng.choice(
        [
            f"Change {value} {a} to {b}.",
            f"how many {b} make {value} {a}?",
            f"{value} {a} -> {b}",
            f"Express {value} {a} in {b}.",
            f"i have {value} {a}, i want {b}",
            f"What are {value} {a} in {b}?",
            f"{value} {a} equal how many {b}?",
        ]
    )
    return [
        (
            text,
            [call],
            rng.choice(["{x}.", "That is {y}.", "It is {y}."])
            .replace("{x}", call[2])
            .replace("{y}", call[2].split(" = ")[1]),
        )
    ]


def times(rng: random.Random) -> list[Work]:
    """Moments moved back and forth, and the current time carried on."""
    now = datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=rng.randint(0, 1_500_000))
    unit = rng.choice(["days", "days", "hours", "minutes"])
    count = rng.randint(2, 120)
    back = rng.random() < 0.45
    step = datetime.timedelta(**{unit: -count if back else count})
    if rng.random() < 0.3:
        shown = f"{now.isoformat(sep=' ', timespec='seconds')}+00:00 ({now:%A})"
        moved = datetime.datetime.combine(now.date(), datetime.time()) + datetime.timedelta(days=count)
        text = rng.choice(
            [
                f"Which date will it be {count} days from today?",
                f"What's today's date and what date is it in {count} days?",
                f"which date do we have {count} days from now (UTC)?",
            ]
        )
        calls: list[Call] = [
            ("current_time", {"timezone": "UTC"}, shown),
            ("shift_time", {"when": f"{now:%Y-%m-%d}", "days": count}, f"{moved} ({moved:%A})"),
        ]
        return [(text, calls, f"Today is {now:%Y-%m-%d}; in {count} days it is {moved:%Y-%m-%d}.")]
    base = datetime.datetime.combine(now.date(), datetime.time()) if unit == "days" else now
    when = f"{base:%Y-%m-%d}" if unit == "days" else f"{base:%Y-%m-%dT%H:%M}"
    moved = base + step
    text = rng.choice(
        [f"What is {count} {unit} before {when}?", f"Go {count} {unit} back from {when}.", f"{count} {unit} earlier than {when}?", f"move {when} back by {count} {unit}"]
        if back else [f"What comes {count} {unit} after {when}?", f"{when} plus {count} {unit}?", f"It starts on {when} and takes {count} {unit}. When is it over?", f"move {when} forward by {count} {unit}"]
    )  # fmt: skip
    call = ("shift_time", {"when": when, unit: -count if back else count}, f"{moved} ({moved:%A})")
    return [
        (text, [call], f"It is {moved:%Y-%m-%d}." if unit == "days" else f"It is {moved:%H:%M} on {moved:%Y-%m-%d}.")
    ]


def file_work(rng: random.Random) -> list[Work]:
    """Files are read, counted up, written, looked through; a wrong name leads to the list."""
    path = pick("file", rng, held=False)
    if rng.random() < 0.4:
        path = f"{some(rng, 1, 1)}/{path}"
    things = [some(rng, 1, 2) for _ in range(rng.randint(2, 5))]
    amounts = [rng.randint(1, 900) for _ in things]
    roll = rng.randrange(9)
    if roll == 0:  # a list with amounts, added up
        lines = [f"{thing}{rng.choice([' ', ': '])}{amount}" for thing, amount in zip(things, amounts, strict=True)]
        text = rng.choice(
            [
                f"Open {path} and add up the numbers.",
                f"What do the amounts in {path} come to?",
                f"Read {path}. How much is it all together?",
                f"total of {path}?",
            ]
        )
        return [
            (
                text,
                [("read_file", {"path": path}, numbered(lines)), _calc("+".join(map(str, amounts)), sum(amounts))],
                f"The sum is {sum(amounts)}.",
            )
        ]
    if roll == 1:  # a table: one row's quantity times price
        prices = [rng.randint(1, 300) for _ in things]
        lines = ["item,quantity,price", *(f"{t},{a},{b}" for t, a, b in zip(things, amounts, prices, strict=True))]
        index = rng.randrange(len(things))
        text = rng.choice(
            [
                f"Look into {path}. What is the stock of {things[index]} worth?",
                f"Read {path}: the value of all {things[index]} together?",
                f"According to {path}, what do all the {things[index]} cost in total?",
            ]
        )
        value = amounts[index] * prices[index]
        return [
            (
                text,
                [("read_file", {"path": path}, numbered(lines)), _calc(f"{amounts[index]}*{prices[index]}", value)],
                f"Together they are worth {value}.",
            )
        ]
    if roll in {2, 3}:  # one line of it
        people = [draw(parse("person"), rng, held=False)[0] for _ in things]
        kind, said = rng.choice(
            [("phone", "number"), ("email", "address"), ("room", "room"), ("date", "date"), ("id(K)", "code")]
        )
        values = [draw(parse(kind), rng, held=False)[1] for _ in things]
        keys = people if kind in {"phone", "email"} else things
        lines = [f"{key}{rng.choice([', ', ': '])}{value}" for key, value in zip(keys, values, strict=True)]
        index = rng.randrange(len(keys))
        text = rng.choice(
            [
                f"Which {said} has {keys[index]} in {path}?",
                f"Read {path}. What is the {said} of {keys[index]}?",
                f"find the {said} for {keys[index]}, it's in {path}",
                f"{path} has a {said} for {keys[index]}, what is it?",
            ]
        )
        return [
            (
                text,
                [("read_file", {"path": path}, numbered(lines))],
                f"The {said} of {keys[index]} is {values[index]}.",
            )
        ]
    if roll == 4:  # write, then read again
        words = compose("sentence", rng) if rng.random() < 0.5 else some(rng, 1, 2)
        first = rng.choice(
            [
                f'Put "{words}" into {path}.',
                f'Make a file {path} that says "{words}".',
                f'Write the words "{words}" to {path}.',
                f'{path} should contain "{words}", please write it',
            ]
        )
        works: list[Work] = [
            (
                first,
                [("write_file", {"path": path, "text": words}, f"Wrote {len(words)} bytes to {path}.")],
                f"I wrote it to {path}.",
            )
        ]
        if rng.random() < 0.5:
            works.append(
                (
                    rng.choice(["Read it again please.", f"What is in {path} now?", "What does the file say now?"]),
                    [("read_file", {"path": path}, numbered([words]))],
                    f"It says: {words}",
                )
            )
        return works
    if roll == 5:  # replace
        old, new = some(rng, 1, 2), some(rng, 1, 2)
        text = rng.choice(
            [
                f'Change "{old}" to "{new}" in {path}.',
                f'in {path}: "{old}" must become "{new}"',
                f'Swap "{old}" for "{new}" in the file {path}.',
                f'Replace "{old}" with "{new}" in {path}.',
            ]
        )
        return [
            (
                text,
                [("replace_in_file", {"path": path, "old": old, "new": new}, f"Replaced in {path}.")],
                f"I replaced it in {path}.",
            )
        ]
    if roll == 6:  # where is it
        word = some(rng, 1, 1) if rng.random() < 0.6 else pick("word", rng, held=False)
        clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        text, answer = rng.choice(
            [
                (f'Look for "{word}" in all files. When did it occur?', f"It occurred at {clock}."),
                (f"Which file contains {word}?", f"It is in {path}."),
                (f"search my files for {word}", f"It occurs in {path}."),
            ]
        )
        return [
            (
                text,
                [("find_in_files", {"text": word}, f"{path}:{rng.randint(1, 80)}: {clock} {word} {some(rng, 1, 2)}")],
                answer,
            )
        ]
    if roll == 7:  # sizes
        names = sorted({pick("file", rng, held=False) for _ in range(4)})
        sizes = [rng.randint(3, 9000) for _ in names]
        index = rng.randrange(len(names))
        listing = "\n".join(f"{name} ({size} bytes)" for name, size in zip(names, sizes, strict=True))
        text, answer = rng.choice(
            [
                (f"How big is {names[index]}? List the files.", f"{names[index]} has {sizes[index]} bytes."),
                ("What files are there?", f"There are {', '.join(names)}."),
                (f"list the files and tell me the size of {names[index]}", f"It has {sizes[index]} bytes."),
            ]
        )
        return [(text, [("list_files", {}, listing)], answer)]
    near = pick("file", rng, held=False)  # not there under that name
    text = rng.choice([f"Read {path} to me.", f"What is in {path}?"])
    calls = [
        ("read_file", {"path": path}, f"error: there is no {path!r}; list the files to see what there is"),
        ("list_files", {}, f"{near} ({rng.randint(9, 900)} bytes)"),
    ]
    return [(text, calls, f"There is no file {path}. There is only {near}.")]


def passages(one: Fact | None, rng: random.Random) -> str:
    """What the search tool shows: passages with their places, the right one among them."""
    texts = [fact(rng, held=False).passage(rng) for _ in range(rng.choice([0, 1, 2, 2, 3]) if one else 2)]
    if one:
        texts.insert(rng.randint(0, len(texts)), one.passage(rng))
    parts = []
    for text in texts:
        title = some(rng, 1, 1)
        parts.append(
            f"[{rng.randint(1, 30)}] {title}.md:1-{rng.randint(2, 9)} ({title.title()})\n# {title.title()}\n{text}"
        )
    return "\n\n".join(parts)


def _number_fact(rng: random.Random, unit: str, low: int, high: int) -> tuple[Fact, int]:
    subject, value = f"{some(rng, 1, 2)}", rng.randint(low, high)
    sentence = rng.choice(
        ["The {s} is {v} {u} {k}.", "One {s} has {v} {u}.", "The {s} measures {v} {u}."]
        if unit not in {"euros", "dollars"}
        else ["A {s} costs {v} {u}.", "The price of a {s} is {v} {u}."]
    )
    sentence = (
        sentence.replace("{s}", subject)
        .replace("{v}", str(value))
        .replace("{u}", unit)
        .replace(" {k}", rng.choice([" in all", "", " now"]))
    )
    return Fact(sentence, "", subject, str(value)), value


def document_work(rng: random.Random) -> list[Work]:
    """Search first, then go on with what was found."""
    roll = rng.randrange(7)
    if roll == 0:
        one, price = _number_fact(rng, rng.choice(["euros", "dollars"]), 2, 90)
        count = rng.randint(2, 40)
        text = rng.choice(
            [
                f"Look up what one {one.query} costs. What do {count} cost?",
                f"How much must I pay for {count} of the {one.query}? The price is in the documents.",
                f"{count} times {one.query}: look up the price and work out the total.",
            ]
        )
        return [
            (
                text,
                [
                    ("search_documents", {"query": f"{one.query} price"}, passages(one, rng)),
                    _calc(f"{count}*{price}", count * price),
                ],
                f"It is {count * price}.",
            )
        ]
    if roll == 1:
        group, index, unit = rng.choice(
            [
                ("length", 5, "centimeters"),
                ("length", 0, "meters"),
                ("mass", 0, "kilograms"),
                ("mass", 1, "grams"),
                ("length", 1, "kilometers"),
            ]
        )
        one, value = _number_fact(rng, unit, 2, 900)
        _, a, b, _ = conversion(rng, value, group, index)
        a = unit
        factor = next(f for names, f in UNITS[group] if a in names) / next(f for names, f in UNITS[group] if b in names)
        call = ("convert_units", {"value": value, "source": a, "target": b}, f"{value} {a} = {value * factor:.9g} {b}")
        text = rng.choice(
            [
                f"Find out about the {one.query} and give it in {b}.",
                f"How much is the {one.query} in {b}? Search the documents.",
                f"Look up the {one.query}. What is that in {b}?",
            ]
        )
        return [
            (
                text,
                [("search_documents", {"query": one.query}, passages(one, rng)), call],
                f"It is {value * factor:.9g} {b}.",
            )
        ]
    one = fact(rng, held=False)
    if roll == 2:
        path = pick("file", rng, held=False)
        text = rng.choice(
            [
                f"{one.question} Look it up and write it to {path}.",
                f"Search for this and save the answer in {path}: {one.question}",
            ]
        )
        said = one.answer.rstrip(".")
        calls = [
            ("search_documents", {"query": one.query}, passages(one, rng)),
            ("write_file", {"path": path, "text": said}, f"Wrote {len(said)} bytes to {path}."),
        ]
        return [(text, calls, f"I wrote it to {path}: {said}.")]
    if roll == 3:
        name = some(rng, 1, 1)
        found = f"[{rng.randint(1, 20)}] {name}.md:1-2 ({name.title()})\n# {name.title()}\n{compose('sentence', rng)}."
        text = rng.choice(
            [
                f"{one.question} Search, then open what you found.",
                f"Search the documents and read the right one: {one.question}",
            ]
        )
        calls = [
            ("search_documents", {"query": one.query}, found),
            ("read_document", {"path": f"{name}.md"}, numbered([f"# {name.title()}", one.passage(rng)])),
        ]
        return [(text, calls, one.answer)]
    works: list[Work] = []
    for _ in range(rng.choice([1, 2, 2, 3])):
        one = fact(rng, held=False)
        known = rng.random() < 0.9
        works.append(
            (
                one.question,
                [("search_documents", {"query": one.query}, passages(one if known else None, rng))],
                one.answer if known else "The documents do not say that.",
            )
        )
    return works


_MINE = [
    ("my {x} is {v}", "what is my {x}?", "{x}", "Your {x} is {v}."), ("the {x} is kept in the {v}", "where is the {x} kept?", "{x}", "It is kept in the {v}."),
    ("{n}'s {x} is {v}", "what is {n}'s {x}?", "{n} {x}", "It is {v}."), ("my {x} has the code {v}", "which code has my {x}?", "{x} code", "The code is {v}."),
    ("i owe {n} {k} euros", "how much do i owe {n}?", "owe {n}", "You owe {n} {k} euros."), ("{n} comes on {d}", "when does {n} come?", "{n} comes", "{n} comes on {d}."),
    ("the {x} for the {v} costs {k} dollars", "what does the {x} for the {v} cost?", "{x} {v} cost", "It costs {k} dollars."),
    ("{n} likes {v} best", "what does {n} like best?", "{n} likes", "{n} likes {v} best."), ("i parked on level {k}", "on which level did i park?", "parked level", "You parked on level {k}."),
]  # fmt: skip


def note_work(rng: random.Random) -> list[Work]:
    """A note is kept; later, mostly, it is asked for."""
    values = {"x": some(rng, 1, 2), "v": some(rng, 1, 1) if rng.random() < 0.6 else draw(parse("id(W)"), rng, held=False)[1], "n": pick("first", rng, held=False),
              "k": str(rng.randint(2, 900)), "d": draw(parse("date"), rng, held=False)[0]}  # fmt: skip
    said, question, query, answer = (form.format(**values) for form in rng.choice(_MINE))
    kept = said[0].upper() + said[1:] + "."
    number = rng.randint(1, 30)
    text = rng.choice(
        [
            "Remember that {s}.",
            "note that {s}",
            "Note for later: {s}",
            "Please remember: {s}.",
            "keep in mind that {s}",
            "Save a note: {s}.",
            "don't let me forget that {s}",
        ]
    ).replace("{s}", said)
    works: list[Work] = [
        (
            text,
            [("save_note", {"text": kept}, f"Saved as note {number}.")],
            rng.choice([f"I saved it: {kept}", "I will remember that. " + kept, f"Noted: {kept}"]),
        )
    ]
    if rng.random() < 0.7:
        others = [fact(rng, held=False).sentence for _ in range(rng.choice([0, 0, 1, 2]))]
        shown = "\n".join(f"[note {number + index}] {line}" for index, line in enumerate([kept, *others]))
        works.append((question[0].upper() + question[1:], [("recall_notes", {"query": query}, shown)], answer))
    if rng.random() < 0.15:
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        return [(rng.choice([f"Work out {a} times {b}.", f"how much is {a} * {b}?"]), [_calc(f"{a}*{b}", a * b)], f"{a} times {b} is {a * b}."),
                (rng.choice(["Save that as a note.", "Make a note of the result.", "note that down"]), [("save_note", {"text": f"{a} times {b} is {a * b}."}, f"Saved as note {number}.")], f"I saved it: {a} times {b} is {a * b}.")]  # fmt: skip
    return works
