"""From an archetype to a tool: names, style and descriptions vary, so that schemas are read and not remembered."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from mixquant_training.generate.catalog import Archetype, Param
from mixquant_training.generate.values import describe, draw
from mixquant_training.generate.wording import swapped
from mixquant_training.generate.words import some

__all__ = ["Tool", "build", "human"]

_SPACES = ["app", "api", "utils", "service", "tools", "client", "my", "core", "assistant", "lib", "helper", "v2"]
_MORE = [
    "Returns a JSON object.", "Needs no account.", "Results are cached for an hour.", "Fails if the input is not valid.",
    "Use it only when the user asks for it.", "Works worldwide.", "The answer is rounded.", "Names are not case-sensitive.",
    "It does not change any data.", "All values are taken as given.", "Only the required inputs must be set.",
]  # fmt: skip
_MORE_PARAM = [
    "Must not be empty", "Exactly as the user said it", "As a plain value without its unit", "Must be given", "Leave it out if it is not known",
    "Used to narrow down the results", "Only set this when the user asks for it", "Taken into account by the computation", "See the documentation",
]  # fmt: skip
_FORMATS = {"date": ["YYYY-MM-DD", "in ISO format", "written YYYY-MM-DD"], "time": ["HH:MM", "HH:MM, 24 hours"]}


@dataclass(frozen=True)
class Tool:
    """A tool as the template shows it, and the names its parameters got."""

    schema: dict[str, Any]
    names: dict[str, str]  # archetype's parameter name → shown name

    @property
    def name(self) -> str:
        """The function's shown name."""
        return str(self.schema["name"])

    def call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A call with these arguments (by the archetype's names), in the order given."""
        return {"name": self.name, "arguments": {self.names[key]: value for key, value in arguments.items()}}


def human(name: str) -> str:
    """``"loan_amount"`` → ``"loan amount"``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _style(name: str, style: str, space: str) -> str:
    if style == "camel":
        return _camel(name)
    if style == "pascal":
        return _camel(name)[0].upper() + _camel(name)[1:]
    return f"{space}_{name}" if style == "space" else name


def _describe_param(param: Param, rng: random.Random, held: bool) -> str:
    text = param.description
    roll = rng.random()
    if roll < 0.2:
        text = (
            f"The {text[0].lower()}{text[1:]}"
            if not text.startswith(("Whether", "How", "What", "When", "Who"))
            else text
        )
    elif roll < 0.3:
        text = text.lower()
    elif roll < 0.36:
        text = human(param.names[0]).capitalize()
    kind = param.kind.name
    if kind in _FORMATS and rng.random() < 0.5 and "YYYY" not in text and "HH" not in text:
        text += f" ({rng.choice(_FORMATS[kind])})"
    if rng.random() < 0.12 and kind not in {"obj", "listobj", "bool", "map"}:
        text += f", e.g. {json.dumps(draw(param.kind, rng, held=held)[1], ensure_ascii=False)}"
    if not param.required and param.default and rng.random() < 0.6:
        text += rng.choice(
            [f". Default is {param.default}", f" (default: {param.default})", f". Defaults to {param.default}"]
        )
    elif not param.required and rng.random() < 0.35:
        text += rng.choice([". Optional", " (optional)", ", optional"])
    if rng.random() < 0.1:
        text += f". {rng.choice(_MORE_PARAM)}"
    return text + ("." if rng.random() < 0.5 and text[-1] != "." else "")


def _optional(schema: dict[str, Any], default: str, rng: random.Random) -> dict[str, Any]:
    """An optional parameter as pydantic writes it: with a default, or nullable."""
    if default and schema["type"] in {"string", "integer"}:
        number = schema["type"] == "integer" and default.isdigit()
        if number or schema["type"] == "string":
            return {"default": int(default) if number else default, **schema}
    if "enum" not in schema and rng.random() < 0.5:
        return {"anyOf": [schema, {"type": "null"}], "default": None}
    return schema


def build(archetype: Archetype, rng: random.Random, *, held: bool = False, taken: frozenset[str] = frozenset()) -> Tool:
    """A tool for an archetype whose name is not in ``taken``."""
    style = rng.choices(["snake", "space", "camel", "pascal"], [60, 20, 17, 3])[0]
    for _ in range(10):
        name = _style(rng.choice(archetype.names), style, rng.choice([archetype.domain, *_SPACES]))
        if name not in taken:
            break
    if not held and rng.random() < 0.03:  # a name that tells nothing: the description does
        name = rng.choice([f"tool_{rng.randint(1, 99)}", f"fn{rng.randint(1, 400)}", some(rng, 1, 2).replace(" ", "_")])
    while name in taken:
        name += "_2"
    names: dict[str, str] = {}
    for param in archetype.params:
        chosen = rng.choice(param.names) if rng.random() < 0.7 else param.names[0]
        if chosen in names.values():
            chosen = param.names[0]
        names[param.names[0]] = _camel(chosen) if style in {"camel", "pascal"} else chosen
    properties: dict[str, Any] = {}
    for param in archetype.params:
        schema = describe(param.kind, rng)
        text = {"description": _describe_param(param, rng, held)} if rng.random() < 0.95 else {}
        if not param.required and rng.random() < 0.2:
            schema = _optional(schema, param.default, rng)
        properties[names[param.names[0]]] = {**schema, **text} if rng.random() < 0.7 else {**text, **schema}
    description = archetype.description
    if not held and rng.random() < 0.2:
        description = swapped(description[0].lower() + description[1:], rng, 0.7)
        description = description[0].upper() + description[1:]
    roll = rng.random()
    if roll < 0.3:
        description += "."
    elif roll < 0.38:
        description = f"{rng.choice(['Use this to', 'This function can', 'A tool to'])} {description[0].lower()}{description[1:]}."
    if rng.random() < 0.2:
        description = f"{description.rstrip('.')}. {rng.choice(_MORE)}"
    required = [names[param.names[0]] for param in archetype.params if param.required]
    parameters = {"type": "object", "properties": properties, "required": required}
    if rng.random() < 0.3:  # the order in which pydantic writes a schema
        parameters = {"properties": properties, "required": required, "type": "object"}
    if not required and rng.random() < 0.5:
        del parameters["required"]
    return Tool({"name": name, "description": description, "parameters": parameters}, names)
