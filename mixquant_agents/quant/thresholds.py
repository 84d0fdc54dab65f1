"""What the start-up measurement takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Layer", "Thresholds", "crossing"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One Linear: exact weight ``[N, K]``, twin codes ``[N, K]`` and scales ``[N, 1]``."""

    weight: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A step with at most so many rows runs exact.

    Attributes:
        pure: steps whose rows are all to be quantized.
        mixed: steps that hold exact rows too.
        microseconds: what was measured, per chain and number of rows.
        seconds: how long measuring took.
    """

    pure: int
    mixed: int
    microseconds: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: float = 0.0


def crossing(exact: dict[int, float], other: dict[int, float]) -> int:
    """The most rows at which ``other`` is not yet ahead: one below the first size from which it stays so."""
    sizes = sorted(exact)
    ahead = [other[m] < exact[m] for m in sizes]
    behind = max((place for place, yes in enumerate(ahead) if not yes), default=-1)
    return sizes[behind + 1] - 1 if behind + 1 < len(sizes) else sizes[-1]
