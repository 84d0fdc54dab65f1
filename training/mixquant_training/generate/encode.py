"""From a conversation to token ids and a mask of what is learnt: the assistant's tokens, end marker included.

The text comes from the chat template that the chat model uses at run time, rendered as transformers renders it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mixquant_agents.embedded.build import TEMPLATE

__all__ = ["encode", "prompt_text", "render", "spans"]


@functools.cache
def _template() -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


def render(messages: Sequence[Any], tools: Sequence[Any], *, generate: bool = False) -> str:
    """The conversation as text; ``generate`` adds the beginning of an assistant's turn."""
    return str(_template().render(messages=messages, tools=list(tools) or None, add_generation_prompt=generate))


def prompt_text(messages: Sequence[Any], tools: Sequence[Any]) -> str:
    """The prompt of the next answer."""
    return render(messages, tools, generate=True)


def spans(messages: Sequence[Any], tools: Sequence[Any]) -> list[tuple[str, bool]]:
    """The rendered text in pieces, each with whether it is learnt."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(messages[:index], tools, generate=True)
        after = render(messages[: index + 1], tools)
        pieces.append((before[len(done) :], False))
        pieces.append((after[len(before) :].removesuffix("\n"), True))
        done = after[:-1]
    return pieces


def encode(tokenizer: Tokenizer, messages: Sequence[Any], tools: Sequence[Any]) -> tuple[list[int], list[bool]]:
    """Token ids, and per token whether it is learnt."""
    ids: list[int] = []
    learnt: list[bool] = []
    for text, learn in spans(messages, tools):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        learnt += [learn] * len(piece)
    return ids, learnt
