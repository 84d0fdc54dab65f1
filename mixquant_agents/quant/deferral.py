"""Which prefills a step leaves for a later one, so that nobody waits for what is less urgent than himself.

vLLM fills every step up to its token budget, first with the prompts it has begun, then with the waiting ones. A step
of 8,192 rows lasts as long as thirty steps that only decode: an urgent prompt waits for the one that runs, for the one
that is scheduled behind it, and then shares a third one. And whatever is read ahead for a turn that may come makes the
steps longer in which others write. So:

- A step reads the prompts of one priority: the most urgent that is there. Less urgent ones wait, those half read too.
- A step whose prompts are less urgent than some of the last :data:`MEMORY_SECONDS` holds at most :data:`STEP_ROWS`:
  the urgent thread will come back, and would wait for it.
- Reading ahead (priority :data:`~mixquant_agents.config.BACKGROUND_PRIORITY` and above) waits for prompts of turns.
  While somebody writes, at most one step in :data:`BACKGROUND_GAP` reads ahead.

Where all turns have one priority and nothing is read ahead, every step is vLLM's own. Pure bookkeeping: no engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mixquant_agents.config import BACKGROUND_PRIORITY, BACKGROUND_ROWS

__all__ = ["BACKGROUND_GAP", "BACKGROUND_ROWS", "MEMORY_SECONDS", "STEP_ROWS", "Deferral", "PrefillDeferral"]

STEP_ROWS = 2048
"""Rows of a step that somebody more urgent may have to wait for: about 45 ms of an 8B model on an H200, and the largest
step that is captured as a CUDA graph by default."""

BACKGROUND_GAP = 128
"""Steps from one that reads ahead beside decoding to the next: 0.8 % of the steps are longer for it."""

MEMORY_SECONDS = 30.0
"""So long after an urgent prompt its thread is expected back: an agent's tool has run by then."""


@dataclass(frozen=True, slots=True)
class Deferral:
    """What one step leaves out.

    Attributes:
        up_to: prefills of a higher number than this priority wait; ``None``: none does.
        rows: most rows of the step, decode rows included; ``None``: vLLM's own limit.
    """

    up_to: int | None = None
    rows: int | None = None


@dataclass(slots=True)
class PrefillDeferral:
    """The rule, and what it has to remember of earlier steps of one scheduler.

    Attributes:
        enabled: ``False``: every step is vLLM's own. For measurements.
        step_rows: see :data:`STEP_ROWS`.
        background_rows: see :data:`~mixquant_agents.config.BACKGROUND_ROWS`.
        background_gap: see :data:`BACKGROUND_GAP`.
        deferred: steps that left a prefill for later.
        background: steps that read ahead.
    """

    enabled: bool = True
    step_rows: int = STEP_ROWS
    background_rows: int = BACKGROUND_ROWS
    background_gap: int = BACKGROUND_GAP
    deferred: int = 0
    background: int = 0
    _since_background: int = 2**30
    _seen: dict[int, float] = field(default_factory=dict)

    def decide(self, begun: Iterable[int], waiting: int | None, decode_rows: int, now: float) -> Deferral | None:
        """What the next step leaves out; ``None``: nothing.

        Args:
            begun: priorities of prompts that are half read.
            waiting: priority of the first prompt that waits and could be begun; ``None``: no prompt could.
            decode_rows: rows of the requests that write.
            now: seconds of the caller's clock.
        """
        self._since_background += 1
        priorities = set(begun)
        others = waiting is not None or len(priorities) > 1
        if waiting is not None:
            priorities.add(waiting)
        if not priorities or not self.enabled:
            return None
        first = min(priorities)
        if first >= BACKGROUND_PRIORITY:
            return self._read_ahead(decode_rows)
        self._seen[first] = now
        for priority in [priority for priority, seen in self._seen.items() if now - seen > MEMORY_SECONDS]:
            del self._seen[priority]
        rows = _limit(self.step_rows, decode_rows) if first > min(self._seen) else None
        return Deferral(first, rows) if others or rows is not None else None

    def _read_ahead(self, decode_rows: int) -> Deferral:
        if decode_rows and self._since_background < self.background_gap:
            return Deferral(up_to=BACKGROUND_PRIORITY - 1)
        self._since_background = 0
        self.background += 1
        return Deferral(rows=_limit(self.background_rows, decode_rows))


def _limit(rows: int, decode_rows: int) -> int:
    """Where many write, half of the limit is left for prompts all the same."""
    return max(rows, decode_rows + rows // 2)
