"""Conversations over several turns: results come back, fail, lead to the next call, or to an answer."""

from __future__ import annotations

import functools
import json
import random
import re
from dataclasses import replace
from typing import Any

from training.generate import talk
from training.generate.asking import ask, fill, surfaces
from training.generate.asking import arguments as meant
from training.generate.catalog import Archetype, Param, expand, load, slots
from training.generate.compose import action
from training.generate.scenes import Message, Scene, Toolbox, called
from training.generate.tools import Tool
from training.generate.values import draw, parse
from training.generate.words import CATALOG, pick

__all__ = ["chain", "error", "follow_up", "from_result", "lookup_then_act", "parallel_results", "small_talk"]

_ERRORS = [
    ("timeout", True), ("service temporarily unavailable, try again", True), ("connection reset, please retry", True),
    ("not found", False), ("permission denied", False), ("no results", False), ("quota exceeded for today", False),
    ("invalid credentials", False), ("rate limited, retry now", True), ("this resource is closed", False),
]  # fmt: skip
_HELD_ERRORS = [("upstream hiccup, one more attempt is fine", True), ("the record is sealed", False)]
_SORRY = [
    "I'm sorry, that did not work: {e}.", "The function failed ({e}), so I can't give you the answer.",
    "That failed with the message \"{e}\".", "Unfortunately I got an error: {e}.", "It did not work, the tool says: {e}.",
]  # fmt: skip


def tool_message(text: str) -> Message:
    """What a tool said."""
    return {"role": "tool", "content": text}


def _results(archetype: Archetype, rng: random.Random, *, held: bool) -> dict[str, Any]:
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


def _tools(box: Toolbox, targets: list[Archetype]) -> tuple[list[Tool], list[Tool]]:
    tools = box.tools([*targets, *box.distractors(targets, box.rng.choice([0, 1, 1, 2, 3, 4]))])
    shown = list(tools)
    box.rng.shuffle(shown)
    return tools[: len(targets)], shown


def _turn(box: Toolbox, archetype: Archetype, tool: Tool) -> tuple[list[Message], dict[str, str]]:
    """Question, call, result, answer."""
    asked = ask(archetype, box.rng, held=box.held)
    result = _results(archetype, box.rng, held=box.held)
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
    (tool,), shown = _tools(box, [archetype])
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
    (tool, *others), shown = _tools(box, [archetype, *second])
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
    (tool,), shown = _tools(box, [archetype])
    asked = ask(archetype, rng, held=box.held)
    call = tool.call(asked.arguments)
    text, retry = rng.choice(_HELD_ERRORS if box.held else _ERRORS)
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
        result = _results(archetype, rng, held=box.held)
        messages += [called([call]), tool_message(talk.result_text(result, rng))]
        messages.append({"role": "assistant", "content": talk.answer(archetype, asked.said, result, rng)})
    else:
        messages.append({"role": "assistant", "content": rng.choice(_SORRY).replace("{e}", text)})
    return Scene("error", shown, messages)


def parallel_results(box: Toolbox) -> Scene:
    """Two calls at once, two results, one answer."""
    rng = box.rng
    archetype = _answerable(box)
    (tool,), shown = _tools(box, [archetype])
    asked = [ask(archetype, rng, held=box.held, optional=0.2) for _ in range(2)]
    results = [_results(archetype, rng, held=box.held) for _ in asked]
    question = f"{asked[0].question.rstrip('.?!')} and {asked[1].question}"
    answers = [talk.answer(archetype, one.said, result, rng) for one, result in zip(asked, results, strict=True)]
    messages = [{"role": "user", "content": box.dressed(question)}, called([tool.call(one.arguments) for one in asked])]
    messages += [tool_message(talk.result_text(result, rng)) for result in results]
    return Scene(
        "parallel_results", shown, [*box.opening(), *messages, {"role": "assistant", "content": " ".join(answers)}]
    )


_FIND = {
    False: ["find the {head} {by} {v} and {act}", "{act}: the {head} {by} {v}", "look up the {head} {by} {v}, then {act}",
            "i need you to {act}. it is the {head} {by} {v}", "search for the {head} {by} {v} and then {act}",
            "there is a {head} {by} {v}. please {act}"],
    True: ["somewhere we have a {head} {by} {v}; dig it out and {act}", "get hold of the {head} {by} {v}, afterwards {act}"],
}  # fmt: skip


def lookup_then_act(box: Toolbox) -> Scene:
    """Find a thing by its name, then do something to it by the number that came back."""
    rng = box.rng
    act = action(rng, held=box.held)
    while act.key.startswith(("list", "search", "create", "register")):
        act = action(rng, held=box.held)
    head = act.domain
    key = f"{head}_id"
    act.params = [Param((key, "id", f"{head}_number"), parse("id(X)"), f"Number of the {head}", True), *act.params]
    kind, by = rng.choice(
        [
            ("company", ["called", "named"]),
            ("person", ["of", "belonging to"]),
            ("topic", ["about", "titled"]),
            ("city", ["in", "from"]),
        ]
    )
    name_param = Param(("name", "query", f"{head}_name"), parse(kind), f"Name of the {head}", True)
    find = Archetype(
        (f"find_{head}", f"search_{head}s", f"lookup_{head}", f"get_{head}_by_name"),
        f"Find a {head} and its number",
        head,
        [name_param],
        ["find {name}"],
    )
    tools, shown = _tools(box, [find, act])
    body = [param for param in act.params[1:] if param.required or rng.random() < 0.3]
    names = [param.names[0] for param in body]
    dotted: list[str] = []
    for param in body:
        dotted += (
            [f"{param.names[0]}.{part.split(':')[0].rstrip('?')}" for part in param.kind.args.split(";")]
            if param.kind.name == "obj"
            else [param.names[0]]
        )
    drawn = surfaces(act, dotted, rng, held=box.held)
    question = expand(rng.choice(act.questions), rng, 1.0)
    if set(names) - {slot.split(".")[0] for slot in slots(question)}:
        return lookup_then_act(box)
    surface, value = draw(parse(kind), rng, held=box.held)
    rest = fill(expand(_clause(act, question, names), rng), {key: text for key, (text, _) in drawn.items()})
    text = rng.choice(_FIND[box.held]).format(head=head, by=rng.choice(by), v=surface, act=rest)
    number = draw(parse("id(N)"), rng, held=box.held)[1]
    extra = {"name": value, "status": rng.choice(["active", "open", "new"])} if rng.random() < 0.5 else {}
    found = {**extra, key: number} if rng.random() < 0.5 else {key: number, **extra}
    arguments = {key: number, **meant(act, drawn)}
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(text)},
        called([tools[0].call({"name": value})]),
        tool_message(talk.result_text(found, rng)),
        called([tools[1].call(arguments)]),
    ]
    if rng.random() < 0.5:
        result = {"status": rng.choice(["ok", "done", "success"])}
        messages += [
            tool_message(talk.result_text(result, rng)),
            {"role": "assistant", "content": talk.answer(act, {}, result, rng)},
        ]
    return Scene("chain", shown, messages)


def _clause(act: Archetype, question: str, names: list[str]) -> str:
    """ "update it with priority {priority}": the verb and the phrases of the chosen attributes."""
    verb = act.key.split("_")[0] if not act.key.startswith("loan_out") else "lend out"
    phrases = []
    for param in act.params[1:]:
        name = param.names[0]
        if name in names:
            inner = " / ".join(
                "{" + slot + "}" for slot in dict.fromkeys(slots(question)) if slot.split(".")[0] == name
            )
            phrases.append(f"({name.replace('_', ' ')} {inner}|with {name.replace('_', ' ')} {inner})")
    return f"{verb} it " + ", ".join(phrases)


@functools.cache
def _chains() -> tuple[tuple[str, str, dict[str, str], str], ...]:
    rows = []
    for line in (CATALOG / "chains.txt").read_text().splitlines():
        if not line.startswith("#"):
            first, second, mapping, question = line.split(" | ", 3)
            rows.append((first, second, dict(part.split("=") for part in mapping.split(",")), question))
    return tuple(rows)


def chain(box: Toolbox) -> Scene:
    """Two functions of the catalogue, the second fed by the first's result. Training only: the catalogue is training's."""
    rng = box.rng
    by_key = {archetype.key: archetype for archetype in load(held=False)}
    first_key, second_key, mapping, template = rng.choice(_chains())
    first, second = by_key[first_key], by_key[second_key]
    tools, shown = _tools(box, [first, second])
    text = expand(template, rng)
    drawn = surfaces(first, [slot for slot in slots(text) if not slot.startswith("2.")], rng, held=False)
    said = {key: surface for key, (surface, _) in drawn.items()}
    text = re.sub(r"\{2\.(\w+)\}", r"{\1__2}", text)
    drawn2 = surfaces(
        second, [slot.removesuffix("__2") for slot in slots(text) if slot.endswith("__2")], rng, held=False
    )
    said |= {f"{key}__2": surface for key, (surface, _) in drawn2.items()}
    result = _results(first, rng, held=False)
    carried: dict[str, Any] = {}
    for param, key in mapping.items():
        value = result[key]
        if isinstance(value, list):
            value = result[key] = value[:1]
            value = value[0]
        carried[param] = value
    merged = {**meant(second, drawn2), **carried}
    ordered = {param.names[0]: merged[param.names[0]] for param in second.params if param.names[0] in merged}
    if any(param.required and param.names[0] not in ordered for param in second.params):
        raise ValueError(f"chain {first_key} → {second_key}: a required value is missing")
    messages = [
        *box.opening(),
        {"role": "user", "content": box.dressed(fill(text, said))},
        called([tools[0].call(meant(first, drawn))]),
        tool_message(talk.result_text(result, rng)),
        called([tools[1].call(ordered)]),
    ]
    if second.result and rng.random() < 0.7:
        final = _results(second, rng, held=False)
        told = {
            **{key: surface for key, (surface, _) in drawn2.items()},
            **{key: talk.joined(value) for key, value in carried.items()},
        }
        messages += [
            tool_message(talk.result_text(final, rng)),
            {"role": "assistant", "content": talk.answer(second, told, final, rng)},
        ]
    return Scene("chain", shown, messages)


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
