"""Which rows of one engine step run quantized. Pure; numpy is loaded only where a mask of rows is asked for.

The rule, once: the quantized positions of a request are an interval ``[first, stop)`` of absolute positions. ``stop``
lies before the last prompt token, which produces the first answer token, or some tokens before it, or behind it, or
nowhere (a uniform policy).
A row is quantized iff its position is in that interval; what else is in the batch, how the prompt is cut in chunks and
whether a row runs again after a preemption make no difference. Counts are sums of overlaps of intervals.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Mode", "Reach", "RequestRows", "RowPlan", "RowRule", "plan_rows"]

Interval = tuple[int, int]
"""``[start, stop)``; empty where ``stop <= start``."""

_NO_ROW: Interval = (0, 0)


class Reach(enum.Enum):
    """Where the quantized positions of a request end; the value counts from the end of its prompt."""

    NOTHING = -sys.maxsize
    BEFORE_LAST = -1
    PROMPT = 0
    EVERYTHING = sys.maxsize


class Mode(enum.Enum):
    """What the rows of a step have in common."""

    EXACT = "exact"
    QUANTIZED = "quantized"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class RowRule:
    """What a resolved policy asks of rows.

    Attributes:
        reach: where the quantized positions of a request end.
        first: the first position that may be quantized; those before it stay exact.
        threshold: a step with at most this many rows runs exact altogether.
        mixed: so does one with at most this many rows of which some would be exact and some not.
        last: with ``BEFORE_LAST``, so many tokens at the prompt's end stay exact.
        last_exact_from: with ``BEFORE_LAST``, shorter prompts are quantized to their end.
    """

    reach: Reach
    first: int = 0
    threshold: int = 0
    mixed: int = 0
    last_exact_from: int = 0
    last: int = 1

    @property
    def offset(self) -> int:
        """Where the quantized positions end, from the end of the prompt."""
        return -self.last if self.reach is Reach.BEFORE_LAST else self.reach.value

    def interval(self, num_prompt_tokens: int) -> Interval:
        """The quantized positions of a request with such a prompt, whatever the size of its steps."""
        short = self.reach is Reach.BEFORE_LAST and num_prompt_tokens < self.last_exact_from
        return self.first, num_prompt_tokens + (0 if short else self.offset)

    @property
    def always(self) -> bool:
        """Every row is quantized."""
        return self.reach is Reach.EVERYTHING and self.first == 0


class RequestRows(NamedTuple):
    """The contiguous rows that one request has in a step. A tuple, since each step makes one for every request.

    Attributes:
        request_id: the worker's id.
        num_prompt_tokens: tokens of the prompt.
        num_computed_tokens: tokens whose KV exists already, so the absolute position of the first row.
        num_scheduled_tokens: number of rows.
        exact_first: so many tokens at the prompt's beginning stay exact, whatever the rule says.
    """

    request_id: str
    num_prompt_tokens: int
    num_computed_tokens: int
    num_scheduled_tokens: int
    exact_first: int = 0


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The routing of one step.

    Attributes:
        rows: scheduled rows; what a graph pads beyond them is nobody's.
        num_quantized: how many of them run quantized.
        intervals: for each request the positions of its quantized rows in this step; ``()`` when no row is quantized.
        requests: who owns the rows, in row order.
    """

    rows: int
    num_quantized: int
    intervals: tuple[Interval, ...]
    requests: tuple[RequestRows, ...]

    @property
    def num_exact(self) -> int:
        """How many rows run exact."""
        return self.rows - self.num_quantized

    @property
    def mode(self) -> Mode:
        """What the rows have in common."""
        if not self.num_quantized:
            return Mode.EXACT
        return Mode.QUANTIZED if self.num_quantized == self.rows else Mode.MIXED

    def all_exact(self) -> RowPlan:
        """The same step with every row exact."""
        return replace(self, num_quantized=0, intervals=())

    def quantized_between(self, index: int, start: int, stop: int) -> int:
        """How many rows of the request at ``index`` with positions in ``[start, stop)`` run quantized."""
        if not self.intervals:
            return 0
        first, end = self.intervals[index]
        return max(0, min(stop, end) - max(start, first))

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool ``[rows]``, true where a row runs quantized."""
        import numpy as np

        mask = np.zeros(self.rows, dtype=np.bool_)
        row = 0
        # No intervals at all: no row is quantized.
        for request, (start, stop) in zip(self.requests, self.intervals, strict=False):
            offset = row - request.num_computed_tokens
            if stop > start:
                mask[start + offset : stop + offset] = True
            row += request.num_scheduled_tokens
        return mask


def plan_rows(requests: Sequence[RequestRows], rule: RowRule) -> RowPlan:
    """Route the rows of a step, given its requests in row order."""
    rows = quantized = 0
    first, offset = rule.first, rule.offset
    short = rule.last_exact_from if rule.reach is Reach.BEFORE_LAST else 0
    intervals = []
    for _, num_prompt_tokens, computed, scheduled, exact_first in requests:
        # RowRule.interval, cut to the step's rows; written out, since decode steps have many requests of one row.
        rows += scheduled
        stop = num_prompt_tokens + (offset if num_prompt_tokens >= short else 0)
        if computed >= stop:
            intervals.append(_NO_ROW)
            continue
        start, stop = max(computed, first, exact_first), min(computed + scheduled, stop)
        intervals.append((start, stop))
        quantized += max(0, stop - start)
    if rows <= rule.threshold or quantized < rows <= rule.mixed:
        quantized = 0
    return RowPlan(rows, quantized, tuple(intervals) if quantized else (), tuple(requests))
