"""What scenes are made of: a toolbox that draws archetypes and tools, which of them serve alike, and the scene itself."""

from __future__ import annotations

import collections
import functools
import random
import re
from dataclasses import dataclass, field
from typing import Any

from mixquant_training.generate import talk
from mixquant_training.generate.asking import dress
from mixquant_training.generate.attributes import shuffled, widened
from mixquant_training.generate.catalog import HINTS, Archetype, load
from mixquant_training.generate.compose import random_archetype
from mixquant_training.generate.tools import Tool, build
from mixquant_training.generate.words import CATALOG

__all__ = ["KNOWLEDGE", "Message", "Scene", "Toolbox", "called", "nearest", "overlaps"]

Message = dict[str, Any]


@dataclass
class Scene:
    """A conversation to learn from or to be tested on. Assistant messages are what is learnt."""

    kind: str
    tools: list[Tool]
    messages: list[Message]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as the template takes them."""
        return [tool.schema for tool in self.tools]


# Archetypes that could serve a request meant for another one of the same group: never distractors of each other.
_OVERLAPS = [set(line.split()) for line in (CATALOG / "overlaps.txt").read_text().splitlines()]


# Questions that words can answer, too: with no fitting tool the model should answer them as it would without tools.
KNOWLEDGE = {"artist_info", "country_info", "define_word", "element_info", "find_recipe", "get_news", "historical_event",
              "mountain_info", "movie_info", "plant_care", "planet_data", "population", "river_info", "species_info", "symptom_checker", "translate_by_code",
              "synonyms", "translate_text", "tourist_attractions", "web_search", "word_definition"}  # fmt: skip


def overlaps(a: Archetype, b: Archetype) -> bool:
    """Whether one could do the other's work."""
    if a.key == b.key or set(a.names) & set(b.names):
        return True
    if a.domain == b.domain and a.domain == "numbers" and "calculator" in {a.key, b.key}:
        return True
    return any(a.key in group and b.key in group for group in _OVERLAPS)


@dataclass
class Toolbox:
    """Draws archetypes and tools from one side of the split."""

    rng: random.Random
    held: bool = False

    def archetype(self) -> Archetype:
        """From the catalogue, or put together at random."""
        share = 0.35 if self.held else 0.4
        drawn = random_archetype(self.rng, held=self.held) if self.rng.random() < share else self._written()
        if not self.held and self.rng.random() < 0.5:
            drawn = widened(drawn, self.rng)
        if not self.held and self.rng.random() < 0.55:
            drawn = shuffled(drawn, self.rng)
        return drawn

    def _written(self) -> Archetype:
        """From the catalogue; training sees more of those whose requests share no word with the schema."""
        if not self.held and self.rng.random() < 0.16:
            return self.rng.choice([one for one in load(held=False) if one.domain in HINTS])
        return self.rng.choice(load(held=self.held))

    def distractors(self, targets: list[Archetype], count: int) -> list[Archetype]:
        """Others that cannot do the targets' work; about half from the same domain."""
        rng, chosen = self.rng, list(targets)
        near = [a for a in load(held=self.held) if a.domain in {t.domain for t in targets}]
        for _ in range(count * 8):
            if len(chosen) == len(targets) + count:
                break
            candidate = rng.choice(near) if near and rng.random() < 0.5 else self.archetype()
            if not self.held and targets[0].key in _near() and rng.random() < 0.25:
                candidate = rng.choice(nearest(targets[0]))
            if not any(overlaps(candidate, other) for other in chosen):
                chosen.append(candidate)
        return chosen[len(targets) :]

    def tools(self, archetypes: list[Archetype]) -> list[Tool]:
        """Tools with different names."""
        built: list[Tool] = []
        for archetype in archetypes:
            taken = frozenset(tool.name for tool in built)
            built.append(build(archetype, self.rng, held=self.held, taken=taken))
        return built

    def dressed(self, question: str) -> str:
        """The question with manners and context."""
        return dress(question, self.rng, held=self.held)

    def opening(self) -> list[Message]:
        """The system message, or none."""
        text = talk.system(self.rng)
        return [] if text is None else [{"role": "system", "content": text}]


def called(calls: list[dict[str, Any]]) -> Message:
    """An assistant message that calls."""
    return {"role": "assistant", "content": "", "tool_calls": calls}


@functools.cache
def _near() -> dict[str, tuple[Archetype, ...]]:
    """For each archetype of training the others whose words are nearest, without those that could do its work."""
    found = {}
    every = load(held=False)

    def words(one: Archetype) -> set[str]:
        text = " ".join([*one.names, one.description, *(name for param in one.params for name in param.names)])
        return {word for word in re.findall("[a-z]+", text.replace("_", " ").lower()) if len(word) > 3}

    words_of = {one.key: words(one) for one in every}
    for one in every:
        kinds = collections.Counter(param.kind.name for param in one.params)
        others = [other for other in every if not overlaps(one, other)]
        others.sort(
            key=lambda o: (
                -(
                    2 * len(words_of[one.key] & words_of[o.key])
                    + (kinds & collections.Counter(p.kind.name for p in o.params)).total()
                    + (o.domain == one.domain)
                )
            )
        )
        found[one.key] = tuple(others[:8])
    return found


def nearest(archetype: Archetype) -> tuple[Archetype, ...]:
    return _near()[archetype.key]
