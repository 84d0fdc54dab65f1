"""Progress of a preparation: a callable with a stage's name and the share done."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["Progress", "stderr_progress"]

Progress = Callable[[str, float], None]
"""``progress(stage, share)``; ``share`` runs from 0 to 1 over the whole preparation and never falls."""

_BAR = 24


def stderr_progress() -> Progress:
    """A bar that redraws itself on a terminal, one line per stage elsewhere."""
    last = ""

    def report(stage: str, share: float) -> None:
        nonlocal last
        if sys.stderr.isatty():
            filled = round(share * _BAR)
            end = "\n" if share >= 1 else ""
            bar = "█" * filled + "░" * (_BAR - filled)
            sys.stderr.write(f"\r\033[Kembedded model {bar} {share:4.0%} {stage}{end}")
        elif stage != last:
            sys.stderr.write(f"embedded model {share:4.0%} {stage}\n")
        last = stage
        sys.stderr.flush()

    return report
