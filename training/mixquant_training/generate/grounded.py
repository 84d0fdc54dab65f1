"""Small invented facts with a question and an answer each: for notes, documents and passages."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mixquant_training.generate import talk
from mixquant_training.generate.catalog import Archetype, Param, expand
from mixquant_training.generate.texts import compose
from mixquant_training.generate.toolbox import Scene, Toolbox, called
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import invented

__all__ = ["Fact", "fact", "grounded"]

# sentence; question; what to search for; answer. {x}: the subject, {v}: the value.
_FACTS = {
    False: [
        ("company", "year", "{x} was founded in {v}.", "when was {x} founded?", "{x} founded", "{x} was founded in {v}."),
        ("company", "city", "The head office of {x} is in {v}.", "where is the head office of {x}?", "{x} head office", "It is in {v}."),
        ("company", "person", "{x} is led by {v}.", "who leads {x}?", "who leads {x}", "{x} is led by {v}."),
        ("company", "int(12-9000)", "{x} employs {v} people.", "how many people does {x} employ?", "{x} employees", "{x} employs {v} people."),
        ("product", "money", "The {x} costs {v}.", "what does the {x} cost?", "{x} price", "The {x} costs {v}."),
        ("product", "int(1-60)", "The warranty of the {x} lasts {v} months.", "how long is the warranty of the {x}?", "{x} warranty", "The warranty lasts {v} months."),
        ("person", "job", "{x} works as a {v}.", "what does {x} do for a living?", "{x} job", "{x} works as a {v}."),
        ("person", "city", "{x} lives in {v}.", "where does {x} live?", "{x} lives", "{x} lives in {v}."),
        ("person", "date", "{x} was born on {v}.", "when is the birthday of {x}?", "{x} birthday", "{x} was born on {v}."),
        ("person", "phone", "The phone number of {x} is {v}.", "what is {x}'s phone number?", "{x} phone number", "It is {v}."),
        ("event", "date", "The {x} takes place on {v}.", "when is the {x}?", "{x} date", "The {x} is on {v}."),
        ("event", "time", "The {x} begins at {v}.", "at what time does the {x} begin?", "{x} begin time", "It begins at {v}."),
        ("event", "room", "The {x} is held in the {v}.", "in which room is the {x}?", "{x} room", "It is held in the {v}."),
        ("servicename", "int(80-9999)", "The {x} service listens on port {v}.", "on which port does {x} listen?", "{x} port", "It listens on port {v}."),
        ("servicename", "first", "{v} is responsible for {x}.", "who is responsible for {x}?", "responsible for {x}", "{v} is responsible for {x}."),
        ("servicename", "version", "{x} runs version {v}.", "which version does {x} run?", "{x} version", "It runs version {v}."),
        ("city", "int(1200-9000000)", "{x} has {v} inhabitants.", "how many inhabitants does {x} have?", "{x} inhabitants", "{x} has {v} inhabitants."),
        ("book", "person", "{x} was written by {v}.", "who wrote {x}?", "{x} author", "It was written by {v}."),
        ("plant", "int(2-30)", "The {x} needs water every {v} days.", "how often does the {x} need water?", "{x} water", "Every {v} days."),
        ("first", "dish", "{x}'s favourite dish is {v}.", "what is {x}'s favourite dish?", "{x} favourite dish", "{x}'s favourite dish is {v}."),
        ("room", "id(W)", "The wifi password in the {x} is {v}.", "what is the wifi password in the {x}?", "wifi password {x}", "It is {v}."),
        ("room", "color", "The {x} was painted {v}.", "what color is the {x}?", "{x} color", "The {x} is {v}."),
        ("team", "first", "The captain of {x} is {v}.", "who is the captain of {x}?", "captain of {x}", "The captain is {v}."),
        ("folder", "int(3-300)", "Files in {x} are kept for {v} days.", "how long are files in {x} kept?", "{x} kept days", "They are kept for {v} days."),
        ("table", "column", "The {x} table is indexed by {v}.", "which column is the {x} table indexed by?", "{x} table index", "It is indexed by {v}."),
        ("device", "int(5-900)", "The {x} uses {v} watts.", "how much power does the {x} use?", "{x} power", "It uses {v} watts."),
    ],
    True: [
        ("hotel", "int(8-400)", "There are {v} beds in {x}.", "what number of beds has {x}?", "{x} beds", "There are {v} beds."),
        ("company", "color", "The logo of {x} is {v}.", "which colour is the logo of {x}?", "{x} logo colour", "The logo is {v}."),
        ("person", "instrument", "{x} practices the {v} every evening.", "which instrument is practiced by {x}?", "{x} instrument", "{x} practices the {v}."),
        ("landmark", "year", "Repairs of {x} ended in {v}.", "in what year did the repairs of {x} end?", "{x} repairs", "They ended in {v}."),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One fact in its four forms."""

    sentence: str
    question: str
    query: str
    answer: str

    def passage(self, rng: random.Random) -> str:
        """The sentence among others."""
        around = [f"{compose('sentence', rng)}." for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        around.insert(rng.randint(0, len(around)), self.sentence)
        return " ".join(around)


def fact(rng: random.Random, *, held: bool) -> Fact:
    """A fresh invented fact."""
    subject, value, sentence, question, query, answer = rng.choice(_FACTS[held])
    x = draw(parse(subject), rng, held=held)[0]
    if subject in {"company", "team"} and rng.random() < 0.3:
        x = invented(rng)
    v = draw(parse(value), rng, held=held)[0]
    return Fact(*(form.replace("{x}", x).replace("{v}", v) for form in (sentence, question, query, answer)))


_NAMES = [
    "search_notes",
    "search_docs",
    "find_passages",
    "knowledge_search",
    "lookup",
    "query_knowledge_base",
    "retrieve",
    "search_wiki",
    "doc_search",
    "search_manual",
]


def grounded(box: Toolbox) -> Scene:
    """Search, passages, an answer from them; or passages that do not hold it."""
    rng = box.rng
    one = fact(rng, held=box.held)
    about = rng.choice(
        ["the knowledge base", "the company wiki", "the handbook", "notes", "the manual", "stored documents"]
    )
    params = [Param(("query", "q", "text", "question"), parse("topic"), "What to look for", True)]
    if rng.random() < 0.5:
        params.append(Param(("top_k", "limit", "k"), parse("int(1-10)"), "How many passages", False, "5"))
    search = Archetype(tuple(rng.sample(_NAMES, 3)), f"Search {about}", "search", params)
    tools = box.tools([search, *box.distractors([search], rng.choice([0, 0, 1, 2]))])
    shown = list(tools)
    rng.shuffle(shown)
    known = rng.random() < 0.85
    passages = [fact(rng, held=box.held).passage(rng) for _ in range(rng.choice([0, 1, 2, 3]) if known else 2)]
    if known:
        passages.insert(rng.randint(0, len(passages)), one.passage(rng))
    numbered = rng.random() < 0.7
    text = "\n\n".join(f"[{i}] {passage}" if numbered else passage for i, passage in enumerate(passages, 1))
    unknown = rng.choice(
        ["I could not find that.", "The passages do not say that.", "I don't know; the search found nothing about it."]
    )
    messages = [
        *box.opening(),
        {
            "role": "user",
            "content": box.dressed(
                expand(
                    rng.choice(["{q}", "{q}", "(tell me:|do you know) {q}", "according to " + about + ", {q}"]), rng
                ).replace("{q}", one.question)
            ),
        },
        called([tools[0].call({"query": one.query})]),
        {"role": "tool", "content": text},
        {"role": "assistant", "content": one.answer if known else unknown},
    ]
    if known and rng.random() < 0.25:
        thanks, replies = rng.choice(talk.SMALL_TALK)
        messages += [{"role": "user", "content": thanks}, {"role": "assistant", "content": rng.choice(replies)}]
    return Scene("grounded", shown, messages)
