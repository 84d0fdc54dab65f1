"""Questions to a database for the shipped SQL tools; the results are what SQLite really says."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from typing import Any

from mixquant_training.generate.own.shown import Call, Work, result, schema
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import some

# ruff: noqa: S608 - statements over made-up tables in memory

__all__ = ["database"]


# table: what one row is called, its name column, text columns with a kind or words, number columns with bounds
_TABLES: dict[str, tuple[str, str, str, dict[str, str], dict[str, tuple[int, int]]]] = {
    "students": ("student", "name", "first", {"city": "city", "course": "enum(physics|history|biology|music)"}, {"age": (17, 40), "grade": (1, 20)}),
    "books": ("book", "title", "book", {"author": "last", "genre": "enum(crime|poetry|travel|science)"}, {"pages": (80, 900), "year": (1950, 2024)}),
    "products": ("product", "name", "product", {"category": "enum(garden|kitchen|toys|tools)", "brand": "company"}, {"price": (2, 900), "stock": (0, 400)}),
    "patients": ("patient", "name", "first", {"doctor": "last", "ward": "enum(A|B|C)"}, {"age": (1, 95), "room": (100, 400)}),
    "shipments": ("shipment", "code", "id(S)", {"destination": "city", "carrier": "company"}, {"weight": (1, 900), "boxes": (1, 60)}),
    "flights": ("flight", "number", "id(F)", {"origin": "city", "gate": "enum(A1|B4|C7|D2)"}, {"seats": (50, 300), "delay": (0, 180)}),
    "players": ("player", "name", "last", {"team": "team", "position": "enum(keeper|defender|striker)"}, {"goals": (0, 40), "number": (1, 99)}),
    "invoices": ("invoice", "number", "id(INV)", {"customer": "company", "status": "enum(open|paid|overdue)"}, {"amount": (20, 9000)}),
    "plants": ("plant", "name", "plant", {"bed": "enum(north|south|east)", "color": "color"}, {"height": (5, 300), "water": (1, 14)}),
    "machines": ("machine", "name", "servicename", {"hall": "enum(one|two|three)", "operator": "first"}, {"hours": (10, 9000), "power": (1, 90)}),
    "sales": ("sale", "article", "product", {"seller": "first", "region": "enum(north|south|east|west)"}, {"quantity": (1, 90), "price": (3, 700)}),
    "members": ("member", "name", "first", {"town": "city", "plan": "enum(basic|gold|family)"}, {"fee": (5, 90), "visits": (0, 200)}),
}  # fmt: skip
_MORE = {
    "rooms": "room",
    "animals": "animal",
    "courses": "course",
    "songs": "song",
    "cars": "carmodel",
    "events": "event",
}


class _World:
    """Two tables with rows."""

    def __init__(self, rng: random.Random) -> None:
        names = rng.sample(sorted(_TABLES), 2)
        self.tables = {name: _TABLES[name] for name in names}
        if rng.random() < 0.4:
            name = rng.choice(sorted(_MORE))
            number, text = "_".join(some(rng, 2, 2).split()), "_".join(some(rng, 2, 2).split()) + "_name"
            self.tables[name] = (name[:-1], "name", _MORE[name], {text: "city"}, {number: (1, 500)})
        self.link = sqlite3.connect(":memory:")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for table, (_, key, kind, texts, numbers) in self.tables.items():
            columns = ["id", key, *texts, *numbers]
            types = ", ".join(f'"{c}" {"INTEGER" if c == "id" or c in numbers else "TEXT"}' for c in columns)
            self.link.execute(f"CREATE TABLE {table} ({types.replace(chr(34), '')})")
            rows = []
            pool = {column: [draw(parse(k), rng, held=False)[1] for _ in range(3)] for column, k in texts.items()}
            for index in range(rng.randint(3, 8)):
                row: dict[str, Any] = {"id": index + 1, key: str(draw(parse(kind), rng, held=False)[1])}
                row |= {text: rng.choice(pool[text]) for text in texts}
                row |= {number: rng.randint(*span) for number, span in numbers.items()}
                rows.append(row)
                self.link.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))
            self.rows[table] = rows


def _quoted(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _question(world: _World, rng: random.Random) -> tuple[str, str, str, str]:
    """Question, statement, answer with ``{r}`` for the result, and a remark that names table and columns."""
    table = rng.choice(sorted(world.tables))
    one, key, _, texts, numbers = world.tables[table]
    row = rng.choice(world.rows[table])
    number, text = rng.choice(sorted(numbers)), rng.choice(sorted(texts))
    word, func = rng.choice(
        [
            ("highest", "max"),
            ("largest", "max"),
            ("lowest", "min"),
            ("smallest", "min"),
            ("average", "avg"),
            ("mean", "avg"),
            ("total", "sum"),
        ]
    )
    where, some_value = f"{text} = {_quoted(row[text])}", row[text]
    low = rng.randint(*numbers[number])
    roll = rng.randrange(12)
    if roll == 0:
        return (rng.choice([f"How many rows are in {table}?", f"how many entries does {table} have", f"Count the {table}.", f"number of rows of the table {table}?"]),
                f"SELECT count(*) FROM {table}", "There are {r} rows.", "")  # fmt: skip
    if roll in {1, 2}:
        asked = rng.choice(
            [
                f"What is the {word} {number} in the table {table}?",
                f"Give me the {word} {number} of all {table}.",
                f"{word} {number} among the {table}?",
            ]
        )
        return asked, f"SELECT {func}({number}) FROM {table}", f"The {word} {number} is {{r}}.", ""
    if roll in {3, 4}:
        wanted = rng.choice([number, text])
        asked = rng.choice(
            [
                f"What is the {wanted} of {row[key]}?",
                f"Which {wanted} belongs to {row[key]}?",
                f"Tell me {row[key]}'s {wanted}.",
                f"i need the {wanted} of the {one} {row[key]}",
            ]
        )
        return (
            asked,
            f"SELECT {wanted} FROM {table} WHERE {key} = {_quoted(row[key])}",
            f"The {wanted} is {{r}}.",
            f"{key} and {wanted}",
        )
    if roll == 5:
        asked = rng.choice(
            [
                f"How many {table} have {text} {some_value}?",
                f"Count the {table} with {text} {some_value}.",
                f"How many {table} are there whose {text} is {some_value}?",
            ]
        )
        return asked, f"SELECT count(*) FROM {table} WHERE {where}", "There are {r}.", f"{text}"
    if roll in {6, 7}:
        asked = rng.choice(
            [
                f"What is the {word} {number} of {table} with {text} {some_value}?",
                f"The {word} {number} where {text} is {some_value}?",
                f"for {text} {some_value}: {word} {number} of the {table}",
            ]
        )
        return (
            asked,
            f"SELECT {func}({number}) FROM {table} WHERE {where}",
            f"The {word} {number} is {{r}}.",
            f"{text} and {number}",
        )
    if roll == 8:
        asked = rng.choice(
            [
                f"Which {table} have {text} {some_value}?",
                f"List the {table} with {text} {some_value}.",
                f"Show the {key} of every {one} with {text} {some_value}.",
            ]
        )
        return asked, f"SELECT {key} FROM {table} WHERE {where}", "These: {r}.", f"{key} and {text}"
    if roll == 9:
        least = rng.random() < 0.4
        asked = f"Which {one} has the {'lowest' if least else 'highest'} {number}?"
        return (
            asked,
            f"SELECT {key} FROM {table} ORDER BY {number} {'ASC' if least else 'DESC'} LIMIT 1",
            "It is {r}.",
            f"{key} and {number}",
        )
    if roll == 10:
        sign, said = rng.choice([(">", "more than"), ("<", "less than")])
        asked = f"How many {table} have a {number} of {said} {low}?"
        return asked, f"SELECT count(*) FROM {table} WHERE {number} {sign} {low}", "There are {r}.", number
    return f"What different values of {text} are in {table}?", f"SELECT DISTINCT {text} FROM {table}", "These: {r}.", ""


def _told(shown: str) -> str:
    return ", ".join(shown.split("\n")[1:])


def database(rng: random.Random) -> list[Work]:
    """One or two questions to a fresh database, sometimes after a look at its tables."""
    world = _World(rng)
    with closing(world.link):
        tables = schema(world.link)
        if rng.random() < 0.12:
            asked = rng.choice(
                [
                    "Which tables are there?",
                    "What is in the database?",
                    "show me the tables",
                    "List the tables of the database.",
                    "what tables do we have",
                ]
            )
            return [(asked, [("describe_database", {}, tables)], f"The tables are {', '.join(sorted(world.tables))}.")]
        works: list[Work] = []
        looked = False
        for _ in range(rng.choice([1, 1, 1, 2])):
            text, sql, answer, columns = _question(world, rng)
            shown = result(world.link, sql)
            table = sql.split(" FROM ")[1].split()[0]
            calls: list[Call] = []
            roll = rng.random()
            if not looked and roll < 0.3:
                text = (
                    rng.choice(
                        [
                            "First look which tables there are. ",
                            "Look at the database first. ",
                            "Check the tables, then tell me: ",
                            "",
                            "",
                        ]
                    )
                    + text
                )
                if table not in text or text[:4] in {"Look", "Chec"}:
                    calls.append(("describe_database", {}, tables))
                    looked = True
            if not calls and not looked:
                also = f" with {columns}" if columns and rng.random() < 0.6 else ""
                text += rng.choice(
                    [
                        f" The table is {table}{also}.",
                        f" (table {table}{also})",
                        f" Use the table {table}{also}.",
                        f" It is in {table}.",
                    ]
                )
            calls.append(("query_database", {"sql": sql}, shown))
            told = _told(shown)
            works.append(
                (
                    text,
                    calls,
                    answer.replace("{r}", told)
                    if told != "(no rows)" and told != "NULL"
                    else "There is no such entry.",
                )
            )
        return works
