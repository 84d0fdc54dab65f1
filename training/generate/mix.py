"""The training mixture: which scenes, in which shares."""

from __future__ import annotations

import random
from collections.abc import Callable

from training.generate import chains, dialogues, scenes
from training.generate.grounded import grounded
from training.generate.own import own
from training.generate.scenes import Scene, Toolbox

__all__ = ["MIXTURE", "example"]

MIXTURE: list[tuple[Callable[[Toolbox], Scene], float]] = [
    (scenes.single, 18), (scenes.multiple, 19), (scenes.parallel, 11), (scenes.parallel_mixed, 6), (scenes.no_fit, 13),
    (scenes.question_back, 10), (dialogues.from_result, 3), (dialogues.follow_up, 3), (dialogues.error, 2.5), (dialogues.parallel_results, 2),
    (chains.lookup_then_act, 5), (chains.chain, 4), (dialogues.small_talk, 0.5), (grounded, 3), (own, 13),
]  # fmt: skip


def example(rng: random.Random) -> Scene:
    """One training conversation."""
    makers, shares = zip(*MIXTURE, strict=True)
    return rng.choices(makers, shares)[0](Toolbox(rng))
