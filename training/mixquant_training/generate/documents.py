"""Documents of a handbook with several facts each, and what people ask of them: once, again, and as a part of a sum."""

from __future__ import annotations

import datetime
import functools
import random
import re
from dataclasses import dataclass

from mixquant_training.generate.own.shown import Call, Work, numbered
from mixquant_training.generate.own.units import conversion
from mixquant_training.generate.words import CATALOG, blend, pick, some, words

__all__ = ["Document", "Topic", "Work", "about", "counted", "document", "shown"]

Call = Call

_SLOT = re.compile(r"{(\w+):([^}]+)}")
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_IDLE = frozenset(
    "a an and any at be before by can do does for from get has have how i if in is it its may me much must my of on one or our per please so that "
    "the then there they to up was we what when where which who whom whose will with would you your many many? did are long".split()
)
_UNITS = {"kilograms": ("mass", 0), "grams": ("mass", 1), "meters": ("length", 0), "kilometers": ("length", 1), "liters": ("volume", 0)}  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """One entry of ``catalog/documents.txt``: a title, sentences with slots, and questions by kind."""

    title: str
    sentences: list[str]
    asked: dict[str, list[tuple[str, ...]]]


@functools.cache
def _topics() -> list[Topic]:
    topics: list[Topic] = []
    for line in (CATALOG / "documents.txt").read_text().splitlines():
        mark, rest = line[:1], line[2:]
        if mark == "#":
            topics.append(Topic(rest, [], {mark: [] for mark in "-+*>~"}))
        elif mark in "-+*>~" and line[1:2] == " ":
            topics[-1].asked[mark].append(tuple(part.strip() for part in rest.split(" | ")))
        else:
            topics[-1].sentences.append(line)
    return topics


def _value(kind: str, rng: random.Random) -> str:
    name, _, span = kind.rstrip(")").partition("(")
    name = name.rstrip("234")
    if name == "int":
        low, high = span.split("-")
        return str(rng.randint(int(low), int(high)))
    hour, minute = rng.randint(0, 23), rng.choice([0, 0, 15, 30, 45, rng.randint(1, 59)])
    letters = "".join(rng.choices("ABCDEFGHKLMNPRSTVWXZ", k=rng.randint(1, 3)))
    makers = {
        "clock": lambda: rng.choice([f"{hour}:{minute:02}", f"{hour}:{minute:02}", f"{hour:02}:{minute:02}", f"{hour % 12 or 12}:{minute:02} {'am' if hour < 12 else 'pm'}"]),
        "day": lambda: rng.choice(_DAYS), "month": lambda: rng.choice(_MONTHS), "year": lambda: str(rng.randint(1720, 2024)),
        "model": lambda: f"{letters}{rng.choice('- -')}{rng.randint(2, 9900)}".replace(" ", ""), "code": lambda: rng.choice([str(rng.randint(1000, 99999)), f"{letters}{rng.randint(1, 99)}"]),
        "letter": lambda: rng.choice("ABCDEFGH"), "phone": lambda: f"{rng.randint(20, 999)}-{rng.randint(1000, 9999)}",
        "colour": lambda: rng.choice(words("color", held=False)), "thing": lambda: blend(rng) if rng.random() < 0.1 else some(rng, 1, 1),
    }  # fmt: skip
    made = makers.get(name)
    return str(made()) if made else pick(name, rng, held=False)


@dataclass(frozen=True)
class Document:
    """A topic with its values drawn."""

    topic: Topic
    values: dict[str, str]
    title: str
    text: str

    @property
    def path(self) -> str:
        """File name of the document."""
        return f"{self.title.lower().replace(' ', '-')}.md"

    @property
    def whole(self) -> str:
        """As a tool shows it that reads it."""
        return numbered([f"# {self.title}", *self.text.split("\n")])

    def fill(self, form: str) -> str:
        """``form`` with the values in place."""
        for name, value in self.values.items():
            form = form.replace("{" + name + "}", value)
        return form


def document(rng: random.Random) -> Document:
    """A document of a random topic."""
    topic = rng.choice(_topics())
    values: dict[str, str] = {}

    def drawn(match: re.Match[str]) -> str:
        name, kind = match.groups()
        for _ in range(8):
            values[name] = _value(kind, rng)
            if list(values.values()).count(values[name]) == 1:
                break
        return values[name]

    title = _SLOT.sub(drawn, topic.title).removeprefix("The ")
    sentences = [_SLOT.sub(drawn, sentence) for sentence in topic.sentences]
    whole = Document(topic, values, title[0].upper() + title[1:], "")
    filled = [whole.fill(sentence) for sentence in sentences]
    if rng.random() < 0.25:  # the same facts in another order
        rng.shuffle(filled)
    return Document(topic, values, whole.title, rng.choice([" ", " ", " ", "\n"]).join(filled))


def _query(question: str, title: str, rng: random.Random) -> str:
    """The words of a question that say something, as a search."""
    found = [word for word in re.findall(r"[\w'-]+", question) if word.lower() not in _IDLE]
    found = list(dict.fromkeys(word.removesuffix("'s") for word in found))[: rng.choice([3, 4, 5])]
    if title.lower().split()[0] not in " ".join(found).lower() and (len(found) < 2 or rng.random() < 0.3):
        found.insert(0, title.lower())
    return " ".join(found)


def shown(found: list[Document], rng: random.Random) -> str:
    """What the search tool shows of documents: passages with their places."""
    return "\n\n".join(
        f"[{rng.randint(1, 30)}] {one.path}:1-{1 + len(one.text.splitlines())} ({one.title})\n# {one.title}\n{one.text}"
        for one in found
    )


def _among(one: Document | None, rng: random.Random) -> list[Document]:
    """The document among others: first more often than not, as a good search has it."""
    title = one.topic.title if one else ""
    others = [other for other in (document(rng) for _ in range(rng.choice([0, 1, 2, 2, 3, 4]) if one else rng.choice([1, 2, 3]))) if other.topic.title != title or "{" in title]  # fmt: skip
    if one:
        others.insert(0 if rng.random() < 0.6 else rng.randint(0, len(others)), one)
    return others


def _dressed(question: str, rng: random.Random) -> str:
    return question[0].upper() + question[1:] if rng.random() < 0.75 else question


def _plain(one: Document, rng: random.Random, kind: str = "-") -> tuple[str, str, str]:
    """A question, what to search for, the answer."""
    questions, answer = rng.choice(one.topic.asked[kind])
    question = one.fill(rng.choice(questions.split("; ")).strip())
    question = question if question.endswith("?") else f"{question}?"
    return question, _query(question, one.title, rng), one.fill(answer)


def _search(one: Document, query: str, rng: random.Random) -> Call:
    return "search_documents", {"query": query}, shown(_among(one, rng), rng)


def _times(one: Document, rng: random.Random) -> Work:
    """Look a number up, then reckon with it."""
    question, form, answer = rng.choice(one.topic.asked["*"])
    n = str(rng.randint(2, 48))
    expression = one.fill(form).replace("{n}", n)
    left, sign, right = re.split(r"([*+-])", expression, maxsplit=1)
    value = {"*": int(left) * int(right), "+": int(left) + int(right), "-": int(left) - int(right)}[sign]
    if sign == "*" and rng.random() < 0.4:
        expression = f"{right}*{left}"
    question = one.fill(question).replace("{n}", n)
    query = _query(re.sub(r"\d+|\b(look|find|search|price)\b", "", question), one.title, rng)
    if "price" in question:
        query += " price"
    calls = [_search(one, query, rng), ("calculator", {"expression": expression}, str(value))]
    return _dressed(question, rng), calls, one.fill(answer).replace("{r}", str(value))


def _until(one: Document, rng: random.Random) -> Work:
    """Look a length of time up, then move a moment by it."""
    question, form = rng.choice(one.topic.asked[">"])
    minutes = int(one.fill(form))
    at = datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=5 * rng.randint(0, 300_000))
    end = at + datetime.timedelta(minutes=minutes)
    question = one.fill(question).replace("{t}", f"{at:%Y-%m-%dT%H:%M}")
    call = ("shift_time", {"when": f"{at:%Y-%m-%dT%H:%M}", "minutes": minutes}, f"{end} ({end:%A})")
    query = _query(re.sub(r"\d[\dT:-]+|\b(look|find|search|out)\b", "", question), one.title, rng)
    return _dressed(question, rng), [_search(one, query, rng), call], f"At {end:%H:%M} on {end:%Y-%m-%d}."


def _converted(one: Document, rng: random.Random) -> Work:
    """Look a measure up, then give it in another unit."""
    question, form = rng.choice(one.topic.asked["~"])
    number, unit = one.fill(form).split()
    group, source = _UNITS[unit]
    value, _, wanted, call = conversion(rng, int(number), group, source)
    result = call[2].split(" = ")[1]
    call = (call[0], {**call[1], "source": unit}, f"{value} {unit} = {result}")
    question = one.fill(question).replace("{u}", wanted)
    query = _query(re.sub(r"\b(look|find|search|convert|give)\b|" + re.escape(wanted), "", question), one.title, rng)
    return _dressed(question, rng), [_search(one, query, rng), call], rng.choice([f"It is {result}.", f"{call[2]}."])


_JUST = {"clock": "time", "day": "day", "first": "name", "last": "name", "int": "number", "model": "code", "code": "code", "phone": "number"}  # fmt: skip


def _written(one: Document, rng: random.Random) -> Work:
    """Look it up and put it into a file, the value alone or in words."""
    question, query, answer = _plain(one, rng)
    path = f"{rng.choice([one.title.lower().replace(' ', '-'), some(rng, 1, 1), blend(rng)])}.{rng.choice(['txt', 'txt', 'md'])}"
    inside = [value for value in one.values.values() if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer)]
    said = answer.rstrip(".")
    if len(inside) == 1 and rng.random() < 0.75:
        said = inside[0]
        word = "time" if ":" in said else "number" if said.isdigit() else rng.choice(["answer", "result"])
        text = rng.choice([
            f"{question} Look it up and write the {word} to {path}.", f"Search for this and write just the {word} to {path}: {question}",
            f"Find the {word} and put it into {path}: {question}", f"Look up this and write the {word} into the file {path}: {question}",
        ])  # fmt: skip
    else:
        text = rng.choice([f"{question} Look it up and write a sentence to {path}.", f"Write to {path} what the documents say: {question}"])  # fmt: skip
    calls: list[Call] = [
        _search(one, query, rng),
        ("write_file", {"path": path, "text": said}, f"Wrote {len(said)} bytes to {path}."),
    ]
    return _dressed(text, rng), calls, f"I wrote it to {path}: {said}."


def _opened(one: Document, rng: random.Random) -> Work:
    """Search, then open what was found: the path is copied."""
    question, query, answer = _plain(one, rng)
    text = rng.choice([f"{question} Search for it, then open the document.", f"Find the right document and read it: {question}", f"{question} Search for the document, open it and tell me."])  # fmt: skip
    return _dressed(text, rng), [_search(one, query, rng), ("read_document", {"path": one.path}, one.whole)], answer


def _in_file(one: Document, rng: random.Random) -> Work:
    """The same text lies in a file."""
    question, _, answer = _plain(one, rng)
    path = one.path if rng.random() < 0.5 else pick("file", rng, held=False)
    path = f"{some(rng, 1, 1)}/{path}" if rng.random() < 0.4 else path
    text = rng.choice([f"{question} It is in {path}.", f"Read {path}. {question}", f"{question} (see {path})", f"Look into {path}: {question}", f"{path} says it: {question}"])  # fmt: skip
    return _dressed(text, rng), [("read_file", {"path": path}, one.whole)], answer


def counted(rng: random.Random) -> tuple[str, Call, str, int]:
    """A question to a document whose answer is a number: question, search, answer, the number."""
    while True:
        one = document(rng)
        question, query, answer = _plain(one, rng)
        numbers = re.findall(r"(?<![\w:.-])\d+(?![\w:.-])", answer.rstrip("."))
        if len(numbers) == 1 and int(numbers[0]) < 1700:
            return question, _search(one, query, rng), answer, int(numbers[0])


def about(rng: random.Random) -> list[Work]:
    """Questions to documents: one to three in a row."""
    one = document(rng)
    special = [(mark, make) for mark, make in (("*", _times), (">", _until), ("~", _converted)) if one.topic.asked[mark]]  # fmt: skip
    roll = rng.random()
    if special and roll < 0.33:
        return [rng.choice(special)[1](one, rng)]
    if roll > 0.86:
        return [rng.choice([_written, _opened, _in_file])(one, rng)]
    if rng.random() < 0.05:
        question, query, _ = _plain(one, rng)
        call = ("search_documents", {"query": query}, shown(_among(None, rng), rng))
        return [(_dressed(question, rng), [call], "The documents do not say that.")]
    works: list[Work] = []
    seen = set()
    for turn in range(rng.choice([1, 1, 2, 2, 3])):
        kind = "+" if turn and one.topic.asked["+"] and rng.random() < 0.5 else "-"
        question, query, answer = _plain(one, rng, kind)
        if answer in seen:
            continue
        seen.add(answer)
        works.append((_dressed(question, rng), [_search(one, query, rng)], answer))
    return works
