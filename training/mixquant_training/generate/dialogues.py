"""Conversations over several turns: results come back, fail, lead to the next call, or to an answer."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from mixquant_training.generate import talk
from mixquant_training.generate.asking import ask
from mixquant_training.generate.catalog import Archetype
from mixquant_training.generate.toolbox import Message, Scene, Toolbox, called
from mixquant_training.generate.tools import Tool
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import pick, some

__all__ = ["error", "failure", "follow_up", "from_result", "parallel_results", "results", "small_talk", "sorry", "tool_message", "toolset"]  # fmt: skip

_PASSING = [
    "timeout", "timed out after {n} s", "service temporarily unavailable", "connection reset", "rate limited", "the server is busy",
    "too many requests right now", "network error", "HTTP 503", "HTTP 502 Bad Gateway", "HTTP 504", "temporary failure in name resolution",
    "database is locked", "the backend did not answer", "connection dropped", "overloaded", "a worker restarted", "lost the link for a moment",
    "short outage", "stale session, a new one is open now", "lock held by another job", "internal glitch", "queue was full", "socket closed early",
]  # fmt: skip
_AGAIN = ["try again", "please retry", "retry now", "you may try again", "another try should work", "safe to retry", "call again", "please repeat the call",
          "retry is allowed", "retry once", "do it again", "it should be back, try once more", "repeating it may help"]  # fmt: skip
_LASTING = [
    "not found", "permission denied", "no results", "quota exceeded for today", "invalid credentials", "this resource is closed", "HTTP 404",
    "HTTP 403 Forbidden", "the account is suspended", "unknown {w}", "no such {w}", "the {w} was deleted", "access to the {w} is not allowed",
    "not available in this plan", "the license has expired", "no {w} matches", "the {w} is read-only", "feature disabled by the administrator",
    "payment declined", "this function was retired", "the {w} does not exist, do not retry", "out of stock", "the {w} is locked for good",
]  # fmt: skip
_HELD_ERRORS = [("upstream hiccup, one more attempt is fine", True), ("the record is sealed", False)]
_SORRY = [
    "I'm sorry, that did not work: {e}.", "The function failed ({e}), so I can't give you the answer.",
    "That failed with the message \"{e}\".", "Unfortunately I got an error: {e}.", "It did not work, the tool says: {e}.",
]  # fmt: skip


def failure(rng: random.Random) -> tuple[str, bool]:
    """What a tool of training says when it fails, and whether one more try is right."""
    if rng.random() < 0.6:
        text = rng.choice(_PASSING).replace("{n}", str(rng.randint(2, 90)))
        glue = rng.choice([", ", "; ", ". ", " - "])
        said = rng.choice(_AGAIN) if rng.random() < 0.75 or not text.startswith(("timeout", "timed")) else ""
        return (f"{text}{glue}{said}" if said else text), True
    return rng.choice(_LASTING).replace("{w}", some(rng, 1, 1)), False


def sorry(text: str, rng: random.Random) -> Message:
    """Words for a call that failed for good."""
    return {"role": "assistant", "content": rng.choice(_SORRY).replace("{e}", text)}


def tool_message(text: str) -> Message:
    """What a tool said."""
    return {"role": "tool", "content": text}


def results(archetype: Archetype, rng: random.Random, *, held: bool) -> dict[str, Any]:
    return {key: draw(kind, rng, held=held)[1] for key, kind in archetype.result}


def _answerable(box: Toolbox) -> Archetype:
    while True:
        archetype = box.archetype()
        if archetype.result:
            return archetype
        if box.held:  # the held-out catalogue has no results of its own
            return replace(
                archetype, result=[("outcome", parse(box.rng.choice(["num", "id(Q)", "sentence", "money"])))]
            )


def toolset(box: Toolbox, targets: list[Archetype]) -> tuple[list[Tool], list[Tool]]:
    tools = box.tools([*targets, *box.distractors(targets, box.rng.choice([0, 1, 1, 2, 3, 4]))])
    shown = list(tools)
    box.rng.shuffle(shown)
    return tools[: len(targets)], shown


def _turn(box: Toolbox, archetype: Archetype, tool: Tool) -> tuple[list[Message], dict[str, str]]:
    """Question, call, result, answer."""
    asked = ask(archetype, box.rng, held=box.held)
    result = results(archetype, box.rng, held=box.held)
    messages = [
        {"role": "user", "content": box.dressed(asked.question)},
        called([tool.call(asked.arguments)]),
        tool_message(talk.result_text(result, box.rng)),
        {"role": "assistant", "content": talk.answer(archetype, asked.said, result, box.rng)},
    ]
    return messages, asked.said


def from_result(box: Toolbox) -> Scene:
    """Call, result, answer; sometimes thanks after it."""
    archetype = _answerable(box)
    (tool,), shown = toolset(box, [archetype])
    messages, _ = _turn(box, archetype, tool)
    if box.rng.random() < 0.2:
        thanks, replies = box.rng.choice(talk.SMALL_TALK)
        messages += [{"role": "user", "content": thanks}, {"role": "assistant", "content": box.rng.choice(replies)}]
    return Scene("from_result", shown, [*box.opening(), *messages])


def follow_up(box: Toolbox) -> Scene:
    """After an answer the user asks again: another value, another tool, or something no tool can do."""
    rng = box.rng
    archetype = _answerable(box)
    second = box.distractors([archetype], 1)
    (tool, *others), shown = toolset(box, [archetype, *second])
    messages, said = _turn(box, archetype, tool)
    roll = rng.random()
    simple = [
        slot
        for slot in said
        if "." not in slot
        and archetype.param(slot).kind.name in {"text", "date", "id", "person", "num", "int", "money"}
    ]
    if roll < 0.5 and simple:
        slot = rng.choice(simple)
        surface, value = draw(archetype.param(slot).kind, rng, held=box.held)
        first_call = messages[1]["tool_calls"][0]["arguments"]
        text = rng.choice(
            [
                "and {}?",
                "what about {}?",
                "now the same for {}",
                "and with {}?",
                "same thing, but {}",
                "do it for {} too",
            ]
        ).format(surface)
        arguments = {**first_call, tool.names[slot]: value}
        if len(simple) > 1:
            text = (
                rng.choice(["and with {p} {v}?", "same again, but {p} {v}", "now use {v} as the {p}"])
                .replace("{v}", surface)
                .replace("{p}", slot.replace("_", " "))
            )
        messages += [{"role": "user", "content": text}, called([{"name": tool.name, "arguments": arguments}])]
    elif second:
        asked = ask(second[0], rng, held=box.held)
        messages += [
            {"role": "user", "content": box.dressed(asked.question)},
            called([others[0].call(asked.arguments)]),
        ]
    return Scene("follow_up", shown, [*box.opening(), *messages])


def error(box: Toolbox) -> Scene:
    """The call fails: try once more if the message says so, else tell the user."""
    rng = box.rng
    archetype = _answerable(box)
    (tool,), shown = toolset(box, [archetype])
    asked = ask(archetype, rng, held=box.held)
    call = tool.call(asked.arguments)
    text, retry = rng.choice(_HELD_ERRORS) if box.held else failure(rng)
    shape = rng.choice(
        [json.dumps({"error": text}), f"Error: {text}", json.dumps({"status": "error", "message": text}), text]
    )
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(asked.question)},
        called([call]),
        tool_message(shape),
    ]
    if retry:
        result = results(archetype, rng, held=box.held)
        messages += [called([call]), tool_message(talk.result_text(result, rng))]
        messages.append({"role": "assistant", "content": talk.answer(archetype, asked.said, result, rng)})
    else:
        messages.append(sorry(text, rng))
    return Scene("error", shown, messages)


def parallel_results(box: Toolbox) -> Scene:
    """Two calls at once, two results, one answer."""
    rng = box.rng
    archetype = _answerable(box)
    (tool,), shown = toolset(box, [archetype])
    asked = [ask(archetype, rng, held=box.held, optional=0.2) for _ in range(2)]
    outcomes = [results(archetype, rng, held=box.held) for _ in asked]
    question = f"{asked[0].question.rstrip('.?!')} and {asked[1].question}"
    answers = [talk.answer(archetype, one.said, result, rng) for one, result in zip(asked, outcomes, strict=True)]
    messages = [{"role": "user", "content": box.dressed(question)}, called([tool.call(one.arguments) for one in asked])]
    messages += [tool_message(talk.result_text(result, rng)) for result in outcomes]
    return Scene(
        "parallel_results", shown, [*box.opening(), *messages, {"role": "assistant", "content": " ".join(answers)}]
    )


_GREETINGS = [
    ("Hello!", "Hello! How can I help you?"), ("Hi", "Hi! What can I do for you?"), ("Good morning", "Good morning! How can I help?"),
    ("Who are you?", "I'm an assistant. I can answer questions and use the functions I was given."),
    ("hey, are you there?", "Yes, I'm here. What can I do for you?"), ("What can you do?", ""), ("how can you help me?", ""),
    ("which tools do you have?", ""),
]  # fmt: skip


def small_talk(box: Toolbox) -> Scene:
    """Greetings and questions about the assistant itself, with tools present."""
    rng = box.rng
    tools = box.tools([box.archetype() for _ in range(rng.choice([1, 2, 3]))])
    question, reply = rng.choice(_GREETINGS)
    if not reply:
        listed = talk.joined(
            [
                tool.schema["description"].rstrip(".")[:1].lower() + tool.schema["description"].rstrip(".")[1:]
                for tool in tools
            ]
        )
        reply = rng.choice(["I can use these functions: {}.", "I can help you with this: {}."]).format(listed)
    first = pick("first", rng, held=box.held)
    text = question if rng.random() < 0.8 else f"{question} I'm {first}."
    return Scene(
        "small_talk",
        tools,
        [*box.opening(), {"role": "user", "content": text}, {"role": "assistant", "content": reply}],
    )
