"""What keeps the base model's ways: text whose next-token distribution the adapted model must share with the base.

Three sources: the base's own answers to chat prompts (four fifths of them shown to the adapted model behind a list of tools, which
the base did not see), text that the base writes freely, and plain English documentation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from mixquant_training.generate import talk
from mixquant_training.generate.catalog import Archetype, load
from mixquant_training.generate.chat import prompt, topical
from mixquant_training.generate.encode import prompt_text
from mixquant_training.generate.toolbox import KNOWLEDGE, Toolbox
from mixquant_training.generate.words import words
from mixquant_training.model import CONFIG, Weights, generate, hidden, rope

__all__ = ["Kept", "KeptRow", "kept_rows", "make_kept"]


@dataclass
class Kept:
    """One text: how the base sees it, how the adapted model sees it, and how many last tokens are compared."""

    base: list[int]
    adapted: list[int]
    compared: int
    states: Tensor | None = None  # the base's final hidden states of the compared positions, ``[compared, width]``


def make_kept(weights: Weights, tokenizer: Tokenizer, chats: int, free: int, plain: int, seed: int) -> list[Kept]:
    """The texts; sampling runs on the weights' device."""
    rng = random.Random(seed)
    box = Toolbox(rng)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    shown, seen = [], []
    for index in range(chats):
        domain, question = topical(rng) if rng.random() < 0.5 else (None, prompt(rng))
        if rng.random() < 0.1:
            question = box.dressed(question)
        messages = [{"role": "user", "content": question}]
        tools = box.tools(_beside(box, domain)) if index % 5 else []
        system = [{"role": "system", "content": talk.system(rng)}] if index % 7 == 1 else []
        system = [one for one in system if one["content"]]
        seen.append(ids(prompt_text(messages, [])))
        shown.append(ids(prompt_text([*system, *messages], [tool.schema for tool in tools])))
    kept = []
    for temperature, part in ((0.7, slice(0, chats // 2)), (1.0, slice(chats // 2, chats))):
        answers = generate(weights, seen[part], 160, temperature=temperature, seed=seed)
        for before, after, answer in zip(seen[part], shown[part], answers, strict=True):
            end = [CONFIG.end] if len(answer) < 160 else []
            kept.append(Kept([*before, *answer, *end], [*after, *answer, *end], len(answer) + len(end)))
    starts = [ids(_beginning(rng)) for _ in range(free)]
    for start, text in zip(
        starts, generate(weights, starts, 224, temperature=1.0, stop=-1, seed=seed + 1), strict=True
    ):
        kept.append(Kept([*start, *text], [*start, *text], len(start) + len(text) - 1))
    for text in _documentation(rng, plain):
        window = ids(text)[:256]
        kept.append(Kept(window, window, len(window) - 1))
    rng.shuffle(kept)
    _look(weights, kept)
    return kept


def _beside(box: Toolbox, domain: str | None) -> list[Archetype]:
    """Functions shown beside a question that they do not answer; mostly of the question's own domain."""
    chosen: list[Archetype] = []
    count = box.rng.choice([1, 1, 2, 2, 3, 4])
    while len(chosen) < count:
        if domain and box.rng.random() < 0.75:
            one = box.rng.choice([archetype for archetype in load(held=False) if archetype.domain == domain])
        else:
            one = box.archetype()
        if one.key not in KNOWLEDGE:
            chosen.append(one)
    return chosen


def _beginning(rng: random.Random) -> str:
    topic = rng.choice(words("topic", held=False))
    return rng.choice(
        [
            f"{topic.capitalize()} is",
            "The",
            "In",
            "def ",
            "# ",
            "import ",
            "When",
            f"A short history of {topic}",
            "class ",
            "This",
            "To",
            "Once upon a time",
            "Q:",
            "1.",
        ]
    )


def _documentation(rng: random.Random, count: int) -> list[str]:
    """Windows of the Python language reference that every Python ships."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return [text[start : start + 1400] for start in (rng.randrange(len(text) - 1400) for _ in range(count))]


@torch.no_grad()  # type: ignore[untyped-decorator] # torch is untyped here
def _look(weights: Weights, kept: list[Kept], tokens: int = 65_536) -> None:
    """Fill in what the base says, once: it never changes."""
    device, dtype = str(weights.embedding.device), weights.embedding.dtype
    cos, sin = rope(2048, device, dtype)
    order = sorted(range(len(kept)), key=lambda index: len(kept[index].base))
    start = 0
    while start < len(order):
        size = max(1, tokens // len(kept[order[min(len(order) - 1, start + 64)]].base))
        rows = [kept[index] for index in order[start : start + size]]
        ids, positions = _pad([one.base for one in rows], rows)
        found = hidden(weights, ids.to(device), cos, sin).flatten(0, 1)[positions.to(device)]
        for one, states in zip(rows, found.split([one.compared for one in rows]), strict=True):
            one.states = states.clone()
        start += size


@dataclass
class KeptRow:
    """One row of kept texts: ids, documents and positions by token; the compared places and what the base says there."""

    ids: NDArray[np.int32]
    document: NDArray[np.int32]
    position: NDArray[np.int32]
    at: NDArray[np.int32]
    begins: NDArray[np.bool_]  # the first compared place of each text: there a refusal or a call would begin
    states: Tensor


def kept_rows(kept: list[Kept], tokens: int, compared: int, rng: random.Random) -> Iterator[KeptRow]:
    """Endless rows of exactly ``tokens`` tokens with at most ``compared`` compared places."""
    waiting: list[Kept] = []
    while True:
        rows: list[Kept] = []
        used = places = skipped = 0
        while skipped < 4:
            if not waiting:
                waiting = rng.sample(kept, len(kept))
            one = waiting.pop()
            if used + len(one.adapted) > tokens or places + one.compared > compared:
                skipped += 1
                waiting.insert(0, one)
                continue
            rows.append(one)
            used, places = used + len(one.adapted), places + one.compared
        ids, document, position, at = (np.zeros(tokens, np.int32) for _ in range(4))
        document[:] = len(rows)
        begins = np.zeros(tokens, np.bool_)
        start = taken = 0
        for number, one in enumerate(rows):
            end = start + len(one.adapted)
            ids[start:end], document[start:end], position[start:end] = one.adapted, number, np.arange(end - start)
            at[taken : taken + one.compared] = np.arange(end - 1 - one.compared, end - 1)
            begins[taken] = True
            start, taken = end, taken + one.compared
        states = torch.cat([one.states for one in rows if one.states is not None])
        yield KeptRow(ids, document, position, at[:taken], begins[:taken], states)


def _pad(texts: list[list[int]], rows: list[Kept]) -> tuple[Tensor, Tensor]:
    width = -(-max(map(len, texts)) // 32) * 32
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    positions = []
    for row, (text, one) in enumerate(zip(texts, rows, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        last = len(text) - 1
        positions += [row * width + position for position in range(last - one.compared, last)]
    flat = torch.tensor(positions)
    return ids, flat
