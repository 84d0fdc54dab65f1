"""The training mixture: which scenes, in which shares."""

from __future__ import annotations

import random
from collections.abc import Callable

from training.generate import chains, dialogues, scenes
from training.generate.grounded import grounded
from training.generate.own import own
from training.generate.scenes import Scene, Toolbox
from training.generate.sessions import session

__all__ = ["MIXTURE", "example"]

MIXTURE: list[tuple[Callable[[Toolbox], Scene], float]] = [
    (scenes.single, 14), (scenes.multiple, 15), (scenes.parallel, 9), (scenes.parallel_mixed, 5), (scenes.no_fit, 16),
    (scenes.question_back, 11), (session, 18), (dialogues.from_result, 1), (dialogues.follow_up, 2), (dialogues.error, 2.5), (dialogues.parallel_results, 1),
    (chains.lookup_then_act, 5), (chains.chain, 3), (dialogues.small_talk, 0.5), (grounded, 2), (own, 11),
]  # fmt: skip


def example(rng: random.Random) -> Scene:
    """One training conversation."""
    makers, shares = zip(*MIXTURE, strict=True)
    return rng.choices(makers, shares)[0](Toolbox(rng))
