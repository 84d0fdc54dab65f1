"""Lists, recipes and tables in files: one entry asked for, or reckoned with."""

from __future__ import annotations

import random

from mixquant_training.generate.own.shown import Call, Work, numbered, plural
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import pick, some

__all__ = ["listed"]


def _path(rng: random.Random, ending: str) -> str:
    name = "-".join(some(rng, 1, 2).split()) if rng.random() < 0.6 else pick("file", rng, held=False).rpartition(".")[0]
    return f"{some(rng, 1, 1)}/{name}.{ending}" if rng.random() < 0.5 else f"{name}.{ending}"


def _read(path: str, lines: list[str]) -> Call:
    return "read_file", {"path": path}, numbered(lines)


def listed(rng: random.Random) -> list[Work]:
    """Something of a file; sometimes something else of it afterwards."""
    return rng.choice([_people, _people, _recipe, _recipe, _table])(rng)


def _people(rng: random.Random) -> list[Work]:
    people = list({draw(parse("person"), rng, held=False)[0] for _ in range(rng.randint(2, 6))})
    kind, said = rng.choice([("phone", "number"), ("phone", "phone number"), ("email", "address"), ("email", "email"), ("room", "room"), ("date", "birthday"), ("id(K)", "code"), ("int(1-99)", "locker"), ("job", "job"), ("city", "town")])  # fmt: skip
    values = [str(draw(parse(kind), rng, held=False)[1]) for _ in people]
    glue = rng.choice([", ", ", ", ": ", " - ", "; "])
    path = _path(rng, rng.choice(["txt", "txt", "md", "csv"]))
    first, second = rng.sample(range(len(people)), 2) if len(people) > 1 else (0, 0)
    name = people[first]
    text = rng.choice([
        f"What is {name}'s {said} in {path}?", f"{name}'s {said}? It is in {path}.", f"Tell me {name}'s {said} from {path}.", f"Look up {name}'s {said} in {path}.",
        f"Which {said} does {path} give for {name}?", f"What {said} has {name} according to {path}?", f"I need the {said} of {name}, see {path}.",
    ])  # fmt: skip
    works: list[Work] = [
        (text, [_read(path, [a + glue + b for a, b in zip(people, values, strict=True)])], rng.choice([f"{name}'s {said} is {values[first]}.", f"It is {values[first]}."]))
    ]  # fmt: skip
    if first != second and rng.random() < 0.25:
        works.append((f"And {people[second]}'s?", [], f"{people[second]}'s {said} is {values[second]}."))
    return works


_PARTS = "Sugar Salt Butter Rice Water Oil Onions Lemons Tomatoes Garlic Carrots Beans Cream Cheese Honey Apples Nuts Raisins Screws Nails Boards Glue Paint Wire Hooks Bricks Sand".split()
_WHOLE = "bread cake soup salad pie stew sauce jam dumplings noodles curry muffins waffles shelf bench kite birdhouse raft fence table".split()


def _recipe(rng: random.Random) -> list[Work]:
    what = rng.choice(_WHOLE) if rng.random() < 0.6 else some(rng, 1, 1)
    parts = rng.sample(_PARTS, k=rng.randint(2, 5))
    units = [rng.choice(["", "", " g", " g", " ml", " spoons", " cups", " kg", " cm"]) for _ in parts]
    amounts = [rng.randint(1, 12) if unit in {"", " spoons", " cups", " kg"} else rng.randint(2, 90) * 10 for unit in units]  # fmt: skip
    lines = [f"# {what.title()}", *(f"{part}: {amount}{unit}" for part, amount, unit in zip(parts, amounts, units, strict=True))]  # fmt: skip
    if rng.random() < 0.5:
        lines.append(rng.choice([f"Serves {rng.randint(2, 12)}", f"Takes {rng.randint(5, 90)} minutes", "Stir well"]))
    path = _path(rng, "md") if rng.random() < 0.6 else f"{some(rng, 1, 1)}/{what}.md"
    index = rng.randrange(len(parts))
    part, amount, unit = parts[index].lower(), amounts[index], units[index]
    much = "many" if part.endswith("s") else "much"
    verb = rng.choice(["need", "take", "use"])
    text = rng.choice([
        f"How {much} {part} does the {what} in {path} {verb}?", f"How {much} {part} do I need for the {what} in {path}?", f"Read {path}. How {much} {part} does it {verb}?",
        f"{part} for the {what}? It is in {path}", f"What does {path} say: how {much} {part}?", f"Look into {path} and tell me how {much} {part} the {what} needs.",
    ])  # fmt: skip
    works: list[Work] = [
        (text[0].upper() + text[1:], [_read(path, lines)], rng.choice([f"It needs {amount}{unit} {part}.", f"{amount}{unit}.", f"The {what} needs {amount}{unit} {part}."]))
    ]  # fmt: skip
    if rng.random() < 0.25:
        n = rng.randint(2, 9)
        call = ("calculator", {"expression": f"{n}*{amount}"}, str(n * amount))
        works.append((rng.choice([f"And for {n} times as much?", f"How {much} for {n}?"]), [call], f"It is {n * amount}{unit}."))  # fmt: skip
    return works


def _table(rng: random.Random) -> list[Work]:
    things = [some(rng, 1, 1) for _ in range(rng.randint(2, 6))]
    head = rng.choice(["item,quantity,price", "article,pieces,cost", "name,count,value", "product,stock,price", "thing,number,worth"])  # fmt: skip
    rows = [(thing, rng.randint(2, 600), rng.randint(2, 95)) for thing in things]
    thing, count, price = rng.choice(rows)
    many = plural(thing)
    _, amount_name, money = head.split(",")
    path = _path(rng, "csv")
    lines = [head, *(",".join(map(str, row)) for row in rows)]
    if rng.random() < 0.6:
        text = rng.choice([f"Read {path}. What is the worth of all {many}?", f"What do all the {many} in {path} come to?", f"All {many} in {path}: what are they worth in total?",
                           f"Look into {path}. How much are the {many} worth altogether?", f"Read {path} and tell me what the {many} cost all together."])  # fmt: skip
        call = ("calculator", {"expression": f"{count}*{price}"}, str(count * price))
        return [(text, [_read(path, lines), call], f"Together they are worth {count * price}.")]
    wanted, value = rng.choice([(amount_name, count), (money, price)])
    text = rng.choice([f"What is the {wanted} of the {thing} in {path}?", f"Read {path}. Which {wanted} has the {thing}?", f"{wanted} of {thing} in {path}?"])  # fmt: skip
    return [(text, [_read(path, lines)], f"The {wanted} of the {thing} is {value}.")]
