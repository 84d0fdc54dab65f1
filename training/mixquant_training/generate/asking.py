"""From an archetype to a question and the arguments it means; wording, manners, noise."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

from mixquant_training.generate.catalog import Archetype, expand, slots
from mixquant_training.generate.texts import compose
from mixquant_training.generate.values import Drawn, draw, fields
from mixquant_training.generate.wording import filled, freeform, swapped
from mixquant_training.generate.words import pick, some

__all__ = ["Asked", "ask", "dress", "fill", "surfaces"]


KEEP = "\u2060"
"""Stands before a value that begins a question: :func:`dress` then leaves its first letter as it is, and drops the mark."""


_FREEFORM = 0.13
"""Share of training's questions that are put together from the schema alone."""


@dataclass
class Asked:
    """A question and what it means: arguments by the archetype's own parameter names, in the schema's order."""

    question: str
    arguments: dict[str, Any]
    said: dict[str, str] = field(default_factory=dict)  # surface text by slot


def surfaces(archetype: Archetype, names: list[str], rng: random.Random, *, held: bool) -> dict[str, Drawn]:
    """A fresh value for each slot."""
    drawn: dict[str, Drawn] = {}
    for name in names:
        param = archetype.param(name)
        kind = param.kind
        if "." in name:
            kind = next(part for key, _, part in fields(kind.args) if key == name.split(".")[1])
        drawn[name] = draw(kind, rng, held=held)
        other = [value for key, (_, value) in drawn.items() if key != name and archetype.param(key).kind == kind]
        for _ in range(8):  # two cities of one question are two cities
            if drawn[name][1] not in other or kind.name in {"int", "bool", "float"}:
                break
            drawn[name] = draw(kind, rng, held=held)
    return drawn


def arguments(archetype: Archetype, drawn: dict[str, Drawn]) -> dict[str, Any]:
    """Values by parameter, in the order of the schema."""
    result: dict[str, Any] = {}
    for param in archetype.params:
        name = param.names[0]
        if name in drawn:
            result[name] = drawn[name][1]
        parts = {key.split(".")[1]: value for key, (_, value) in drawn.items() if key.startswith(f"{name}.")}
        if parts:
            order = [key for key, _, _ in fields(param.kind.args)]
            result[name] = {key: parts[key] for key in order if key in parts}
    return result


def fill(template: str, values: dict[str, str]) -> str:
    """Put surface texts into slots."""
    return re.sub(r"\{([\w.]+)\}", lambda match: values.get(match.group(1), match.group(0)), template)


def ask(
    archetype: Archetype,
    rng: random.Random,
    *,
    held: bool,
    template: str | None = None,
    optional: float | None = None,
    fixed: dict[str, Drawn] | None = None,
) -> Asked:
    """One question about an archetype. ``fixed`` gives the values of some slots."""
    share = rng.choice([0.0, 0.3, 0.5, 0.8]) if optional is None else optional
    required = {param.names[0] for param in archetype.params if param.required}
    free = freeform(archetype, rng, share) if not held and template is None and rng.random() < _FREEFORM else None
    template = free or template
    for _ in range(20):
        text = expand(template or rng.choice(archetype.questions), rng, share)
        names = slots(text)
        if template is not None or required <= {name.split(".")[0] for name in names}:
            break
    drawn = surfaces(archetype, names, rng, held=held)
    drawn.update({key: value for key, value in (fixed or {}).items() if key in drawn})
    said = {key: surface for key, (surface, _) in drawn.items()}
    if not held:
        text = joined(archetype, reworded(text, rng), rng)
        if rng.random() < 0.4:
            text = swapped(text, rng)
        if rng.random() < 0.12:
            text = filled(text, rng)
    text = typo(text, rng) if rng.random() < 0.04 else text
    if not held and text.startswith("{"):
        text = KEEP + text
    return Asked(fill(text, said), arguments(archetype, drawn), said)


_OTHER_WORDS = [
    (r"^(what is|what's|how much is) (?=the |\{)", ["tell me ", "give me ", "i need ", "i'd like to know ", "do you have ", "let me know ", "i want ", "can you tell me ", "any idea about ", "get me "]),
    (r"^(find|search|search for|look for) (?=\w)", ["look for ", "locate ", "hunt for ", "get me ", "i'm looking for ", "help me find ", "see if you can find ", "try to find ", "i'm after ", "where can i find "]),
    (r"^(show me|show|list) (?=\w)", ["let me see ", "display ", "bring up ", "i want to see ", "give me ", "could i see ", "i'd like to look at "]),
    (r"^(calculate|compute|work out) (?=\w)", ["figure out ", "determine ", "tell me ", "help me with ", "i have to know ", "get "]),
    (r"^(is there|are there) (?=\w)", ["do we have ", "do you see ", "can you check for ", "any "]),
    (r"^how many (?=\w)", ["what number of ", "tell me how many ", "count how many ", "i wonder how many "]),
    (r"^(when|where|who|which) (?=\w)", [r"tell me \1 ", r"do you know \1 ", r"i forgot \1 ", r"can you say \1 ", r"i wonder \1 "]),
    (r"^(?=(add|book|buy|call|cancel|change|convert|create|delete|email|log|make|mark|move|open|order|pay|play|post|put|read|record|register|rent|reserve|run|save|send|set|start|stop|take|tell|text|track|translate|turn|update|write) )",
     ["could you ", "can you ", "i want you to ", "please ", "i need you to ", "i'd like you to ", "would you ", "let's ", "it's time to ", "you can ", "we need to ", "i'd like to ", "help me ", "try to ", "i have to ", "now "]),
    (r"\bi (need|want|would like) ", ["need ", "i require ", "i could use ", "give me ", "i'm in need of ", "we need "]),
]  # fmt: skip


def reworded(template: str, rng: random.Random) -> str:
    """The same request with another beginning, or in telegram style; slots stay."""
    if rng.random() < 0.06:
        return re.sub(r"\b(the|a|an|please|me|is|are|of|i|want|you|my) (?![^{]*\})", "", template).strip() or template
    for pattern, others in _OTHER_WORDS:
        if rng.random() < 0.4 and re.search(pattern, template):
            return re.sub(pattern, rng.choice(others), template, count=1)
    return template


_TWO = re.compile(r"(?:\b(?:from|between) )?\{(\w+)\} (to|and|till|until) \{(\w+)\}")
_GLUES = {"and": [" / ", " & ", "/", " + ", " - "], "to": ["->", " -> ", "→", " → ", " > ", " - ", "/", " / "]}


def joined(archetype: Archetype, template: str, rng: random.Random) -> str:
    """Two values of one kind as a pair of a timetable ("A-B", "A → B")."""
    match = _TWO.search(template)
    if match is None or rng.random() > 0.3:
        return template
    first, second = (archetype.param(match.group(place)).kind for place in (1, 3))
    if first != second or first.name not in {"text", "person", "time", "id", "cell", "float", "num"}:
        return template
    if first.name in {"float", "num"} and (match.group(2) != "and" or match.group(0)[0] != "{"):
        return template
    glues = _GLUES["and" if match.group(2) == "and" else "to"] + (["-", "-"] if first.name == "text" else [])
    pair = "{" + match.group(1) + "}" + rng.choice(glues) + "{" + match.group(3) + "}"
    return template[: match.start()] + pair + template[match.end() :]


def typo(template: str, rng: random.Random) -> str:
    """Swap or drop one letter outside the slots."""
    places = [i for i in range(1, len(template) - 2) if template[i - 1 : i + 2].isalpha()]
    outside = [i for i in places if template[:i].count("{") == template[:i].count("}")]
    if not outside:
        return template
    i = rng.choice(outside)
    if rng.random() < 0.5:
        return template[:i] + template[i + 1] + template[i] + template[i + 2 :]
    return template[:i] + template[i + 1 :]


_BEFORE = {
    False: [
        "Hi, ", "Hello! ", "Hey, ", "Please ", "Could you help me? ", "Quick question: ", "I have a request. ",
        "Good morning. ", "Sorry to bother you, ", "One more thing: ", "Okay, ", "So ", "Can you help? ", "Hi there! ",
        "I was wondering: ", "Assistant, ", "Alright. ", "Next: ", "For my notes: ", "My boss wants to know: ",
        "Before I forget: ", "It's urgent. ", "As discussed, ", "Thanks for your help so far. ", "Let's see. ",
    ],
    True: ["Say, ", "Evening! ", "Right then, ", "Bit of a favour: ", "Whenever you have a second, ", "Small ask. "],
}  # fmt: skip
_AFTER = {
    False: [
        " Thanks!", " Thank you.", " please", " Please be quick.", " I need it today.", " Much appreciated.", " Cheers.",
        " Let me know.", " That would be great.", " Thank you in advance!", " It's for a friend.", " No rush.",
    ],
    True: [" Ta!", " I'd be grateful.", " That's all for now.", " Whenever suits."],
}  # fmt: skip
_CONTEXT = {
    False: [
        "I'm working on a project about {topic}.", "I live in {city} with my family.", "My friend {first} asked me about this.",
        "We talked about {topic} at school today.", "I'm preparing for a {event}.", "I just came back from {city}.",
        "It has been a long day.", "I'm new to this.", "My old {product} broke last week.", "I run a small shop in {city}.",
        "I am a {job} by profession.", "My {hobby} club meets tomorrow.", "{first} and I had an argument about it.",
        "I read about {topic} in the paper.", "I promised {first} to find out.", "There is so much to do before the {event}.",
        "I'm on the train to {city} right now.", "I tried to do it by hand and failed.", "I keep forgetting these things.",
        "It took me {n} minutes to find you.", "My phone is down to {n} percent.", "There are {n} people waiting behind me.", "It is my {n}th try today.", "I have been up since {n} o'clock.",
        "The {animal} is making noise again.", "I am wearing my {color} coat today.", "We had {dish} for lunch.", "{first} says hello.", "My cousin {first} works in {city}, by the way.", "I moved here from {country}.",
        "The {product} I bought last year is still fine.", "My {language} is rusty.", "I'd rather be playing {sport}.", "{company} could not help me.", "I was told {n} different things.", "My aunt in {city} is {n} now.",
        "No idea whether that matters.", "Sounds odd, I know.", "This has nothing to do with the {event}.", "The {room} is a mess.", "Forget what I said about the {product}.", "I only have {n} minutes.",
        "Don't mind the noise, that's {first} with the {instrument}.", "We are out of {food}, but that is another story.", "I had to restart the {device} {n} times.", "{first} is no help at all.", "I found you through {company}.",
    ],
    True: ["Nothing special, just curiosity.", "Our neighbours in {city} wanted to hear this too.", "I lost my {product} again."],
}  # fmt: skip


_EMPTY_BEFORE = [
    "yo", "good evening", "now", "hm", "well", "listen", "ahem", "good day", "my dear", "mate", "hey you", "look", "one little thing", "if it's no trouble", "when you get round to it", "sorry to be a pain",
    "thinking about it", "before the shop closes", "as promised", "here goes", "a quick one", "next on my list", "just wondering", "for what it's worth", "out of interest", "at your leisure",
    "excuse me", "morning", "happy Friday", "be a dear", "sir", "friend", "to whom it may concern", "a favor please", "task for you", "heads up", "all right", "let me think", "first of all", "last thing",
]  # fmt: skip
_EMPTY_AFTER = [
    "cheers then", "whenever you can", "that's it", "nothing else", "take your time", "asap", "you're the best", "talk soon", "many thanks", "thx", "bye for now", "I'll wait", "over and out", "done",
    "sorry for the bother", "it's for my aunt", "don't ask why", "long story", "that would help a lot", "kind regards", "appreciate it", "no pressure", "just so I know", "got it?", "if you please",
    "we'll see", "fingers crossed", "as I said", "the usual", "that'll do", "good luck", "I owe you", "nice one", "see you", "hope that's clear", "end of message", "greetings", "and hurry",
]  # fmt: skip


def _context(rng: random.Random, held: bool) -> str:
    text = rng.choice(_CONTEXT[held])
    text = text.replace("{n}", str(rng.randint(3, 90))) if "{n}" in text else text
    return re.sub(r"\{(\w+)\}", lambda match: pick(match.group(1), rng, held=held), text)


def _manners(rng: random.Random, phrases: list[str]) -> str:
    """A phrase of a list, or in its place a made-up one that means nothing."""
    if rng.random() < 0.6:
        return rng.choice(phrases)
    text = some(rng, 1, 3)
    return rng.choice(
        [text, text, f"{text} as ever", f"oh {text}", f"as the {text} goes", f"no {text}", f"a {text} one"]
    )


def dress(question: str, rng: random.Random, *, held: bool) -> str:
    """Manners, context, case and punctuation around a question; its values stay as they are."""
    text = question
    if not held and rng.random() < 0.12:  # words that mean nothing here, before or after
        if rng.random() < 0.5:
            glue = rng.choice([", ", ": ", ". ", "! ", " - ", "... "])
            text = _manners(rng, _EMPTY_BEFORE) + glue + text
        else:
            said = _manners(rng, _EMPTY_AFTER)
            text = text + ("" if text[-1] in ".?!" else rng.choice([". ", ", ", " - ", "; "])).rstrip() + " " + said
    if rng.random() < 0.25:
        text = rng.choice(_BEFORE[held]) + text
    if rng.random() < 0.15:
        text = text + ("" if text[-1] in ".?!" else ".") + rng.choice(_AFTER[held])
    if rng.random() < 0.75:
        text = text if text[0] == KEEP else text[0].upper() + text[1:]
        text = re.sub(r"([.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), text)
        text = re.sub(r"\bi\b", "I", text)
    if text[-1] not in '.?!"' and rng.random() < 0.6:
        text += "."
    if rng.random() < 0.12:
        context = _context(rng, held) if held or rng.random() < 0.6 else f"{compose('message', rng)}."
        text = f"{context} {text}" if rng.random() < 0.75 else f"{text}{'' if text[-1] in '.?!' else '.'} {context}"
    return text.replace(KEEP, "")
