"""What is said around calls: system prompts, refusals, questions back, small talk, answers from results."""

from __future__ import annotations

import json
import random
from typing import Any

from mixquant_training.generate.asking import fill
from mixquant_training.generate.catalog import Archetype
from mixquant_training.generate.tools import Tool, human
from mixquant_training.generate.words import pick

__all__ = ["SMALL_TALK", "answer", "ask_back", "joined", "refuse", "result_text", "system"]

_SYSTEMS = [
    "You are a helpful assistant that can call functions.", "You are {first}, an assistant at {company}.",
    "Use the functions when they help. Otherwise answer in words.", "You are a careful assistant. Be brief.",
    "You help customers of {company}. Answer politely.", "You are an assistant. Call a function only if it fits the request.",
    "You are a helpful, concise assistant.", "Answer the user's request with the tools you have.",
    "You are an agent that works step by step with tools.", "You assist the staff of {company} in {city}.",
]  # fmt: skip
_REFUSALS = [
    "I'm sorry, I don't have a function that can do that.", "None of the available functions fits this request.",
    "I can't do that with the tools I have here.", "Sorry, I have no tool for that. I can only help with {can}.",
    "That is outside of what my functions can do. They cover {can}.", "I'm afraid none of my tools can help with that.",
    "My tools are limited to {can}, so I can't do this.", "I don't have the right function for this request.",
    "Sorry, but there is no function here that would answer this.", "I can help with {can}, but not with this.",
    "Unfortunately no available function matches what you are asking for.", "The functions I was given can't handle that request.",
]  # fmt: skip
_ASKS = [
    "Could you tell me the {name}?", "Which {name} should I use?", "I need the {name} to do that. What is it?",
    "What is the {name}?", "Sure. Please give me the {name} first.", "I can do that once I know the {name}.",
    "Please tell me the {name}.", "To go on I need the {name}. Could you provide it?", "Happy to help. What {name}?",
]  # fmt: skip
SMALL_TALK = [
    ("Thanks!", ["You're welcome!", "Glad I could help.", "Any time!"]),
    ("Thank you, that's all.", ["You're welcome! Have a nice day.", "Happy to help. Goodbye!"]),
    ("Great, thanks a lot.", ["You're welcome!", "My pleasure."]), ("ok", ["Is there anything else I can do for you?"]),
    ("Perfect.", ["Glad to hear it. Anything else?"]), ("Cool, bye", ["Goodbye!", "Bye! Have a nice day."]),
]  # fmt: skip
_DONE = ["Done.", "All set.", "That's done.", "It is done.", "Okay, done."]


def system(rng: random.Random) -> str | None:
    """A system prompt, or ``None`` for the template's own."""
    if rng.random() < 0.6:
        return None
    text = rng.choice(_SYSTEMS)
    return fill(text, {key: pick(key, rng, held=False, free=False) for key in ("first", "company", "city")})


def refuse(tools: list[Tool], rng: random.Random) -> str:
    """A sentence that says no tool fits."""
    can = " and ".join(human(tool.name) for tool in rng.sample(tools, k=min(2, len(tools))))
    return rng.choice(_REFUSALS).replace("{can}", can)


def ask_back(archetype: Archetype, param: str, tool: Tool, rng: random.Random) -> str:
    """A sentence that asks for a missing value."""
    name = human(tool.names[param] if rng.random() < 0.5 else param)
    return rng.choice(_ASKS).replace("{name}", name)


def joined(value: Any) -> str:
    """A JSON value as words."""
    if isinstance(value, list):
        return (
            " and ".join([", ".join(map(joined, value[:-1])), joined(value[-1])])
            if len(value) > 1
            else joined(value[0])
        )
    if isinstance(value, dict):
        return ", ".join(f"{human(key)} {joined(item)}" for key, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def result_text(result: dict[str, Any], rng: random.Random) -> str:
    """What a tool gives back: JSON mostly, or lines, or the bare value."""
    roll = rng.random()
    if len(result) == 1 and roll < 0.4:
        value = next(iter(result.values()))
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if roll < 0.15:
        return "\n".join(f"{key}: {joined(value)}" for key, value in result.items())
    if roll < 0.25:
        return json.dumps({"status": "success", "data": result}, ensure_ascii=False)
    if roll < 0.32:
        return json.dumps(result, ensure_ascii=False, indent=2)
    return json.dumps(result, ensure_ascii=False)


def answer(archetype: Archetype, said: dict[str, str], result: dict[str, Any], rng: random.Random) -> str:
    """The answer to the user: the archetype's sentence, or the result in words."""
    values = {**said, **{key: joined(value) for key, value in result.items()}}
    text = fill(archetype.answer, values) if archetype.answer else ""
    if text and "{" not in text:
        return text
    told = joined({key: value for key, value in result.items() if key != "status"})
    first = rng.choice(_DONE) if "status" in result else "Here is the result:"
    return f"{first} {told[0].upper()}{told[1:]}." if told else first
