"""The training mixture: which scenes, in which shares."""

from __future__ import annotations

import random
from collections.abc import Callable

from mixquant_training.generate import chains, dialogues, scenes
from mixquant_training.generate.fan import fan
from mixquant_training.generate.grounded import grounded
from mixquant_training.generate.own.work import own, own_fan
from mixquant_training.generate.sessions import session
from mixquant_training.generate.toolbox import Scene, Toolbox

__all__ = ["FANS", "MIXTURE", "OWN_FANS", "example", "examples"]

FANS, OWN_FANS = 0.41, 0.11
"""Shares of :func:`fan` and :func:`own_fan` among the examples; each is several conversations over the same tools."""
MIXTURE: list[tuple[Callable[[Toolbox], Scene], float]] = [
    (scenes.single, 20), (scenes.multiple, 19), (scenes.parallel, 12), (scenes.parallel_mixed, 5), (scenes.no_fit, 8),
    (scenes.question_back, 7), (session, 9), (dialogues.from_result, 1), (dialogues.follow_up, 2), (dialogues.error, 4), (dialogues.parallel_results, 1),
    (chains.lookup_then_act, 7), (chains.chain, 3), (dialogues.small_talk, 0.5), (grounded, 3), (own, 17),
]  # fmt: skip


def examples(rng: random.Random) -> list[Scene]:
    """One training conversation, or several that begin alike."""
    roll = rng.random()
    if roll < FANS + OWN_FANS:
        return (fan if roll < FANS else own_fan)(Toolbox(rng))
    makers, shares = zip(*MIXTURE, strict=True)
    return [rng.choices(makers, shares)[0](Toolbox(rng))]


def example(rng: random.Random) -> Scene:
    """One training conversation."""
    return rng.choice(examples(rng))
