"""Two calls in a row: the second needs what the first brought."""

from __future__ import annotations

import functools
import re
from typing import Any

from mixquant_training.generate import talk
from mixquant_training.generate.asking import arguments as meant
from mixquant_training.generate.asking import fill, surfaces
from mixquant_training.generate.catalog import Archetype, Param, expand, load, slots
from mixquant_training.generate.compose import action
from mixquant_training.generate.dialogues import results, tool_message, toolset
from mixquant_training.generate.toolbox import Scene, Toolbox, called
from mixquant_training.generate.values import draw, parse
from mixquant_training.generate.words import CATALOG

__all__ = ["chain", "lookup_then_act"]

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
    tools, shown = toolset(box, [find, act])
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
    tools, shown = toolset(box, [first, second])
    text = expand(template, rng)
    drawn = surfaces(first, [slot for slot in slots(text) if not slot.startswith("2.")], rng, held=False)
    said = {key: surface for key, (surface, _) in drawn.items()}
    text = re.sub(r"\{2\.(\w+)\}", r"{\1__2}", text)
    drawn2 = surfaces(
        second, [slot.removesuffix("__2") for slot in slots(text) if slot.endswith("__2")], rng, held=False
    )
    said |= {f"{key}__2": surface for key, (surface, _) in drawn2.items()}
    result = results(first, rng, held=False)
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
        final = results(second, rng, held=False)
        told = {
            **{key: surface for key, (surface, _) in drawn2.items()},
            **{key: talk.joined(value) for key, value in carried.items()},
        }
        messages += [
            tool_message(talk.result_text(final, rng)),
            {"role": "assistant", "content": talk.answer(second, told, final, rng)},
        ]
    return Scene("chain", shown, messages)
