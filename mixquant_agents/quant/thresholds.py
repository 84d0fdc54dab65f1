"""From how many rows on quantizing pays."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Thresholds", "crossing"]


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
    behind = max((index for index, yes in enumerate(ahead) if not yes), default=-1)
    return sizes[behind + 1] - 1 if behind + 1 < len(sizes) else sizes[-1]
