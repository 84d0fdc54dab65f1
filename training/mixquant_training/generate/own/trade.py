"""Questions to a database as people ask them: by the thing itself, in the plural, and with a sum to do afterwards."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from typing import Any

from mixquant_training.generate.documents import counted
from mixquant_training.generate.own.shown import Call, Work, plural, result, schema
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import pick, vocabulary

# ruff: noqa: S608 - statements over made-up tables in memory

__all__ = ["difference", "staff", "trade"]

Call = Call

# table: who, what, how many, how much money, and what was done
_TRADES = [
    ("deliveries", "client", "item", "pieces", "cost", "delivered"), ("rentals", "renter", "article", "days", "fee", "rented"),
    ("purchases", "buyer", "thing", "amount", "price", "bought"), ("repairs", "owner", "device", "hours", "bill", "repaired"),
    ("loans", "borrower", "tool", "weeks", "deposit", "lent"), ("harvest", "farmer", "crop", "crates", "value", "harvested"),
    ("shipments", "sender", "goods", "boxes", "freight", "shipped"), ("bookings", "guest", "room_type", "nights", "rate", "booked"),
    ("returns", "shop", "item", "count", "refund", "returned"), ("donations", "donor", "gift", "number", "worth", "given"),
]  # fmt: skip
_THINGS = (
    "tent kayak hammer sofa mirror carpet kettle rope helmet pump trumpet piano basket candle drum barrel pillow fence "
    "tractor ticket violin blanket kite skirt magnet anchor bucket ribbon jacket camera bottle wheel engine cabinet saddle drone"
).split()
# table: one of them, group column with groups, number column, place column
_STAFF = [
    ("staff", "wage", "team", ("night", "kitchen", "garage", "service")), ("crew", "pay", "ship", ("Aurora", "Selkie", "Corvus")),
    ("teachers", "income", "subject", ("history", "music", "chemistry")), ("drivers", "bonus", "depot", ("north", "harbour", "east")),
    ("players", "wage", "club", ("Rovers", "Falcons", "United")), ("nurses", "pay", "ward", ("surgery", "children", "heart")),
    ("guards", "income", "gate", ("west", "main", "river")), ("actors", "fee", "troupe", ("Comet", "Lantern", "Harlequin")),
]  # fmt: skip


class _Table:
    """A table in memory, and what the shipped tools say about it."""

    def __init__(self, name: str, columns: dict[str, str], rows: list[tuple[Any, ...]], rng: random.Random) -> None:
        self.name = name
        self.link = sqlite3.connect(":memory:")
        inside = ", ".join(f"{column} {kind}" for column, kind in {"id": "INTEGER", **columns}.items())
        self.link.execute(f"CREATE TABLE {name} ({inside})")
        if rng.random() < 0.6:
            other = rng.choice(["visits", "streets", "journal", "letters"])
            self.link.execute(f"CREATE TABLE {other} (id INTEGER, day TEXT, remark TEXT)")
        for number, row in enumerate(rows, 1):
            self.link.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * (len(row) + 1))})", (number, *row))

    def ask(self, sql: str) -> Call:
        return "query_database", {"sql": sql}, result(self.link, sql)

    def look(self) -> Call:
        return "describe_database", {}, schema(self.link)

    def hint(self, columns: list[str], rng: random.Random) -> str:
        named = f" with {' and '.join(columns)}" if rng.random() < 0.8 else ""
        return rng.choice([f" The table is {self.name}{named}.", f" (table {self.name}{named})", f" Use the table {self.name}{named}."])  # fmt: skip


def _told(call: Call) -> str:
    return ", ".join(call[2].split("\n")[1:])


def _begun(table: _Table, text: str, columns: list[str], rng: random.Random) -> tuple[str, list[Call]]:
    """The question with the table named, or with a look at the tables first."""
    if rng.random() < 0.3:
        return rng.choice(["Check which tables there are. ", "See which tables there are. ", "Look at the database first. "]) + text, [table.look()]  # fmt: skip
    if table.name in text:
        return text, []
    return text + table.hint(columns, rng), []


def trade(rng: random.Random) -> list[Work]:
    """Who bought tents, how many tents were bought, what does a tent cost?"""
    name, who, what, count, money, done = rng.choice(_TRADES)
    things = rng.sample(_THINGS, 3) if rng.random() < 0.6 else rng.sample(list(vocabulary(capital=False)), 3)
    people = list({pick("first", rng, held=False) for _ in range(4)})
    prices = {thing: rng.randint(4, 900) for thing in things}
    rows: list[tuple[Any, ...]] = [(rng.choice(people), thing, rng.randint(1, 30), prices[thing]) for thing in things]
    rows += [(rng.choice(people), thing, rng.randint(1, 30), prices[thing]) for thing in rng.choices(things[1:], k=rng.randint(0, 3))]  # fmt: skip
    rng.shuffle(rows)
    table = _Table(name, {who: "TEXT", what: "TEXT", count: "INTEGER", money: "INTEGER"}, rows, rng)
    with closing(table.link):
        works: list[Work] = []
        kind = rng.randrange(4)
        for turn, thing in enumerate(rng.sample(things, k=rng.choice([1, 1, 1, 2]))):
            many, where = plural(thing), f"FROM {name} WHERE {what} = '{thing}'"
            if kind == 0:
                text = rng.choice(
                    [
                        f"How many {many} were {done} in total?",
                        f"How many {many} were {done}?",
                        f"total number of {many} {done}?",
                        f"How many {many} have been {done} altogether?",
                    ]
                )
                sql, answer, columns = f"SELECT sum({count}) {where}", f"{{r}} {many} were {done}.", [what, count]
                again = rng.choice([f"And how many {many}?", f"And {many}?"])
            elif kind == 1:
                text = rng.choice(
                    [
                        f"What is the {money} of a {thing} in the table {name}?",
                        f"What {money} has a {thing}?",
                        f"the {money} for one {thing}, from {name}?",
                        f"Tell me the {money} of a {thing}.",
                    ]
                )
                sql, answer, columns = f"SELECT {money} {where}", f"The {money} of a {thing} is {{r}}.", [what, money]
                again = rng.choice([f"And of a {thing}?", f"and a {thing}?"])
            elif kind == 2:
                text = rng.choice(
                    [
                        f"Which {who} {done} {many}?",
                        f"Who {done} a {thing}?",
                        f"Name the {who} for {many}.",
                        f"To which {who} do the {many} belong?",
                    ]
                )
                sql, answer, columns = f"SELECT {who} {where}", "{r}", [who, what]
                again = rng.choice([f"And {many}?", f"And who {done} {many}?"])
            else:
                text = rng.choice(
                    [
                        f"How many times were {many} {done}?",
                        f"How many rows are about {many}?",
                        f"count the rows with {many}",
                    ]
                )
                sql, answer, columns = f"SELECT count(*) {where}", "{r} times.", [what]
                again = f"And {many}?"
            call = table.ask(sql)
            told = ", ".join(dict.fromkeys(_told(call).split(", ")))
            text, calls = _begun(table, text, columns, rng) if turn == 0 else (again, [])
            works.append((text, [*calls, call], answer.replace("{r}", told)))
            if turn == 0 and kind == 1 and "," not in told and rng.random() < 0.3:
                n = rng.randint(2, 40)
                text = rng.choice([f"And for {n} of them?", f"what are {n} {many}?", f"How much are {n}?"])
                value = str(int(told) * n)
                works.append((text, [("calculator", {"expression": f"{told}*{n}"}, value)], f"That is {value}."))
        return works


def staff(rng: random.Random) -> list[Work]:
    """What one earns, in a year too; a group's mean by the group's name alone."""
    name, money, group, groups = rng.choice(_STAFF)
    people = sorted({pick("first", rng, held=False) for _ in range(rng.randint(4, 7))})
    towns = [draw(parse("city"), rng, held=False)[1] for _ in range(3)]
    rows: list[tuple[Any, ...]] = [(one, groups[i % len(groups)], rng.randint(11, 95) * 50, rng.choice(towns)) for i, one in enumerate(people)]  # fmt: skip
    table = _Table(name, {"name": "TEXT", group: "TEXT", money: "INTEGER", "town": "TEXT"}, rows, rng)
    one, place, _, town = rng.choice(rows)
    with closing(table.link):
        if rng.random() < 0.5:
            n, unit = rng.randint(2, 36), rng.choice(["months", "weeks", "days"])
            text = rng.choice([f"Look up {one}'s {money} in {name}. What does that make in {n} {unit}?", f"Find the {money} of {one} in {name}. How much is it for {n} {unit}?",
                               f"How much does {one} get in {n} {unit}? The {money} is in the table {name}.", f"{one}'s {money} times {n}? It stands in {name}."])  # fmt: skip
            call = table.ask(f"SELECT {money} FROM {name} WHERE name = '{one}'")
            value = str(int(_told(call)) * n)
            expression = f"{_told(call)}*{n}" if rng.random() < 0.7 else f"{n}*{_told(call)}"
            return [(text, [call, ("calculator", {"expression": expression}, value)], rng.choice([f"It is {value}.", f"In {n} {unit} it is {value}." if unit in text else f"That is {value}."]))]  # fmt: skip
        word, func = rng.choice([("average", "avg"), ("highest", "max"), ("lowest", "min"), ("mean", "avg"), ("total", "sum")])  # fmt: skip
        by_town = rng.random() < 0.3
        column, value = ("town", town) if by_town else (group, place)
        text = rng.choice([f"What is the {word} {money} in {value}?", f"{word} {money} of {value}?", f"Give me the {word} {money} for {value}.", f"How many {name} are in {value}?", f"Who works in {value}?"])  # fmt: skip
        chosen = "count(*)" if text.startswith("How many") else "name" if text.startswith("Who") else f"{func}({money})"
        call = table.ask(f"SELECT {chosen} FROM {name} WHERE {column} = '{value}'")
        answer = {"count(*)": "There are {r}.", "name": "{r}"}.get(chosen, f"The {word} {money} in {value} is {{r}}.")
        text, calls = _begun(table, text, [column, money] if "(" in chosen and "*" not in chosen else [column], rng)
        return [(text, [*calls, call], answer.replace("{r}", _told(call)))]


def difference(rng: random.Random) -> list[Work]:
    """A number from a document, one from a table, then what lies between: the earlier answers are reckoned with."""
    question, search, answer, first = counted(rng)
    name, money, group, groups = rng.choice(_STAFF)
    people = sorted({pick("first", rng, held=False) for _ in range(rng.randint(4, 9))})
    rows: list[tuple[Any, ...]] = [(one, rng.choice(groups), rng.randint(11, 95) * 50, "here") for one in people]
    table = _Table(name, {"name": "TEXT", group: "TEXT", money: "INTEGER", "town": "TEXT"}, rows, rng)
    place = rng.choice(rows)[1]
    with closing(table.link):
        call = table.ask(f"SELECT count(*) FROM {name} WHERE {group} = '{place}'")
    second = int(_told(call))
    asked = rng.choice([f"And how many {name} belong to {place}?", f"How many of the {name} have {group} {place}?"])
    asked += table.hint([group], rng)
    high, low = max(first, second), min(first, second)
    last, expression, value = rng.choice([
        ("How many remain free then?", f"{high}-{low}", high - low), ("What is the difference of the two?", f"{high}-{low}", high - low),
        ("How many are left over?", f"{high}-{low}", high - low), ("And both together?", f"{first}+{second}", first + second),
        ("Subtract one from the other.", f"{high}-{low}", high - low), ("How many more is that?", f"{high}-{low}", high - low),
        ("How many stay empty?", f"{high}-{low}", high - low), ("What do the two make together?", f"{first}+{second}", first + second),
    ])  # fmt: skip
    return [
        (question[0].upper() + question[1:], [search], answer),
        (asked, [call], f"There are {second}."),
        (last, [("calculator", {"expression": expression}, str(value))], f"{value}"),
    ]
