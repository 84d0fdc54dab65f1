"""Ways of saying the same: other words, fillers, and requests built from a schema's own names in telegram style. Training only."""

from __future__ import annotations

import random
import re

from mixquant_training.generate.catalog import Archetype, Param
from mixquant_training.generate.values import fields
from mixquant_training.generate.words import some

__all__ = ["filled", "freeform", "swapped"]

_SAME = [
    "need|require|could use|want|am after", "want|would like|wish for|fancy|am after", "show|display|let me see|bring up", "find|locate|dig up|track down|hunt down",
    "buy|get|purchase|pick up", "send|pass on|ship|forward|get across", "book|reserve|arrange|secure", "cancel|call off|drop|scrap", "change|alter|adjust|switch",
    "add|put in|enter|include", "remove|take out|strike|get rid of", "calculate|work out|figure out|reckon", "compute|work out|get", "big|large|sizable", "small|little|tiny",
    "cheap|inexpensive|low-cost", "fast|quick|speedy", "start|begin|kick off", "stop|end|halt|quit", "write|put down|jot", "record|note|enter|write up", "tell|let know|inform",
    "check|look at|verify|see about", "make|produce|create|set up", "open|unlock|open up", "close|shut", "help|assist|lend a hand", "house|home|place", "car|vehicle|auto",
    "trip|journey|travel", "price|cost", "total|sum|whole", "about|on|regarding|concerning", "with|having|using|along with", "near|close to|around|not far from",
    "without|minus|lacking|leaving out", "until|till|up to", "from|starting from|beginning at", "because|since|as", "today|this very day", "please|kindly|if you could|pretty please",
    "also|too|as well", "maybe|perhaps|possibly", "much|a lot", "children|kids", "people|persons|folks", "my|our|the", "every|each", "quickly|fast|in a hurry", "look up|check|fetch",
    "turn on|switch on|power up", "turn off|switch off|power down", "give me|hand me|get me|let me have", "what is|what's|what would be|tell me", "how much|what amount", "how many|what number of",
    "is there|do you see|do we have", "can you|could you|are you able to|would you", "schedule|plan|set|pencil in", "translate|put|render",
    "remind|nudge|jog the memory of", "play|put on", "pay|settle|cover", "order|get|request", "rent|hire|borrow", "track|follow|trace", "update|refresh|bring up to date", "delete|erase|wipe|bin",
    "list|enumerate|go through", "compare|hold side by side|contrast", "measure|gauge", "convert|turn|change", "between|anywhere from", "at least|no less than|a minimum of", "at most|no more than|a maximum of|tops",
    "costs|runs at|goes for", "called|named|by the name of", "and|plus|&", "per|a|each", "weather|conditions", "flight|plane", "meeting|get-together|appointment", "email|mail|message",
]  # fmt: skip
_FILLERS = [
    "just", "kindly", "quickly", "maybe", "if possible", "you know", "as it happens", "really", "for once", "like last time", "well", "um", "again", "then", "by the way", "in any case", "obviously",
    "as usual", "this time", "honestly", "if that works", "more or less", "so to speak", "let's say", "I guess", "as agreed", "for real", "hopefully", "alright",
]  # fmt: skip
_BOTH = {word: one.split("|") for one in _SAME for word in [one.split("|")[0]]}
_PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _BOTH), key=len, reverse=True)) + r")\b(?![^{]*\})")


def swapped(template: str, rng: random.Random, share: float = 0.3) -> str:
    """Some words replaced by others that mean about the same; slots stay."""
    return _PATTERN.sub(lambda m: rng.choice(_BOTH[m.group(1)]) if rng.random() < share else m.group(1), template)


def filled(template: str, rng: random.Random) -> str:
    """One or two words that say nothing, put between two words or after a comma."""
    words = template.split(" ")
    for _ in range(rng.choice([1, 1, 2])):
        places = [i for i in range(1, len(words)) if words[i - 1][-1:] not in "{" and "{" not in words[i - 1]]
        if not places:
            break
        at = rng.choice(places)
        said = rng.choice(_FILLERS)
        words.insert(at, f"{said}," if rng.random() < 0.2 else said)
    return " ".join(words)


_SAID = [
    "{h} {v}", "{h} {v}", "{h}: {v}", "{h} = {v}", "{h} is {v}", "{v} as {h}", "{v} for {h}", "the {h} is {v}", "with {h} {v}", "{h} - {v}", "{h} ({v})", "{v} ({h})", "{h} being {v}",
    "my {h} would be {v}", "use {v} for the {h}", "{h}, {v}", "as {h} take {v}", "{v}, that's the {h}", "make the {h} {v}",
]  # fmt: skip
_SELF = {
    "date",
    "time",
    "email",
    "url",
    "phone",
    "datetime",
    "weekday",
    "month",
    "file",
}  # their look says what they are
_GLUE = [", ", ", ", ", ", "; ", " / ", " - ", " and ", ". ", " + ", " "]
_ORDERS = [
    "{s}: {p}", "{s} - {p}", "{s}. {p}", "{p}. {s}", "{s}, {p}", "{p}: {s}", "{s} please, {p}", "{p} -> {s}", "{s} ({p})", "i have {p} and need this: {s}", "do this: {s}. {p}", "{s}! {p}",
    "could you {s}? {p}", "time to {s}, {p}", "{s} with {p}", "{p} - {s} with that", "this is about {w}. {s}: {p}", "what i need: {s}. what i know: {p}", "here's what i have: {p}. {s}",
]  # fmt: skip


def freeform(archetype: Archetype, rng: random.Random, share: float) -> str | None:
    """A request in telegram style: what the function does, and each value beside its parameter's name."""
    subject = rng.choice([archetype.description, archetype.description, rng.choice(archetype.names).replace("_", " ")])
    subject = subject.rstrip(".").lower()
    if len(subject) > 60 or "{" in subject or "[" in subject or "|" in subject:
        return None
    kinds = [param.kind for param in archetype.params]
    glue, parts = rng.choice(_GLUE), []
    styles = rng.sample(_SAID, k=2)
    for param in archetype.params:
        if param.required or rng.random() < share:
            part = _part(param, kinds.count(param.kind) == 1, rng, styles)
            if part is None:
                if param.required:
                    return None
                continue
            parts.append(part)
    if not parts:
        return None
    if rng.random() < 0.5:
        rng.shuffle(parts)
    text = rng.choice(_ORDERS).replace("{w}", some(rng, 1, 2))
    return text.replace("{s}", subject).replace("{p}", glue.join(parts))


def _part(param: Param, only: bool, rng: random.Random, styles: list[str]) -> str | None:
    name = param.names[0]
    if param.kind.name == "bool":
        return "{" + name + "}"
    if param.kind.name == "obj":
        inner = ["{" + f"{name}.{key}" + "}" for key, required, _ in fields(param.kind.args) if required]
        value = ", ".join(inner)
        if not inner:
            return None
    else:
        value = "{" + name + "}"
    if only and (param.kind.name in _SELF or param.kind.name == "enum") and rng.random() < 0.5:
        return value
    shown = rng.choice(param.names).replace("_", " ")
    if (
        rng.random() < 0.3
        and 3 < len(param.description) < 40
        and not re.search(r"[{}()|\[\]]|Whether|YYYY|HH:", param.description)
    ):
        shown = param.description.rstrip(".").lower()
    return rng.choice(styles).replace("{h}", shown).replace("{v}", value)
