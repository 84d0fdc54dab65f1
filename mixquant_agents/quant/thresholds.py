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
        by_exact: :attr:`mixed` by how many exact rows a step holds, where their number matters.
    """

    pure: int
    mixed: int
    microseconds: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: float = 0.0
    by_exact: dict[int, int] = field(default_factory=dict)

    def mixed_with(self, exact_rows: int) -> int:
        """:attr:`mixed` for a step of so many exact rows; beyond what was measured, that of the most."""
        larger = [count for count in self.by_exact if count >= exact_rows]
        return self.by_exact[min(larger) if larger else max(self.by_exact)] if self.by_exact else self.mixed


def crossing(exact: dict[int, float], other: dict[int, float]) -> int:
    """The most rows at which ``other`` is not yet ahead: one below the first size from which it stays so."""
    sizes = sorted(exact)
    ahead = [other[m] < exact[m] for m in sizes]
    behind = max((index for index, yes in enumerate(ahead) if not yes), default=-1)
    return sizes[behind + 1] - 1 if behind + 1 < len(sizes) else sizes[-1]
