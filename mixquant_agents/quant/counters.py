"""Prompt rows per request, by how they ran. Kept in the worker, bounded, dropped once read after the end.

For each request ``quantized + exact`` is the number of prompt tokens it prefilled (its prompt less what the prefix
cache gave). Rows that run again, after a preemption or after lost KV blocks, count in ``recomputed`` and nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mixquant_agents.quant.plan import RowPlan

__all__ = ["RowCounter", "RowCounts"]

_SUFFIX = 9
"""Length of what vLLM appends to a front-end request id: a hyphen and 8 hex digits."""


@dataclass(slots=True)
class RowCounts:
    """Rows of one request.

    Attributes:
        quantized, exact: prompt rows run for the first time.
        recomputed: rows run again.
        preemptions: how often the scheduler took the request's KV blocks away.
    """

    quantized: int = 0
    exact: int = 0
    recomputed: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class _Entry:
    counts: RowCounts
    done: int = 0
    """Absolute position up to which rows have run."""
    redo_until: int = 0
    """Generated positions below this one run again (set by a preemption)."""
    finished: bool = False


class RowCounter:
    """Counts of the requests of one worker. ``capacity`` bounds how many finished requests wait to be read."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._running: dict[str, _Entry] = {}
        self._finished: OrderedDict[str, _Entry] = OrderedDict()

    def record(self, plan: RowPlan, drafts: dict[str, int] | None = None) -> None:
        """Add one step. ``drafts`` says how many of a request's rows are speculative."""
        start = 0
        for rows in plan.requests:
            entry = self._running.get(rows.request_id)
            if entry is None:
                entry = self._running[rows.request_id] = _Entry(RowCounts())
            end = rows.computed + rows.scheduled
            if rows.computed >= rows.prompt_len and rows.computed >= entry.redo_until:  # new answer rows: not counted
                entry.done = max(entry.done, end - (drafts.get(rows.request_id, 0) if drafts else 0))
                start += rows.scheduled
                continue
            prompt_rows = max(0, min(end, rows.prompt_len) - rows.computed)
            again = max(0, min(prompt_rows, entry.done - rows.computed))
            quantized = int(np.count_nonzero(plan.mask[start + again : start + prompt_rows]))
            entry.counts.quantized += quantized
            entry.counts.exact += prompt_rows - again - quantized
            generated_again = min(end, entry.redo_until) - max(rows.computed, rows.prompt_len)
            entry.counts.recomputed += again + max(0, generated_again)
            entry.done = max(entry.done, end - (drafts or {}).get(rows.request_id, 0))
            start += rows.scheduled

    def preempted(self, request_ids: Iterable[str]) -> None:
        """The scheduler took the KV blocks of these requests away."""
        for request_id in request_ids:
            entry = self._running.get(request_id)
            if entry is not None:
                entry.counts.preemptions += 1
                entry.redo_until = entry.done

    def finished(self, request_ids: Iterable[str]) -> None:
        """These requests ended, in whatever way."""
        for request_id in request_ids:
            entry = self._running.pop(request_id, None)
            if entry is not None:
                entry.finished = True
                self._finished[request_id] = entry
        while len(self._finished) > self._capacity:
            self._finished.popitem(last=False)

    def read(self, request_ids: Iterable[str]) -> dict[str, RowCounts]:
        """Counts by front-end id; ids that are not known are left out. A finished request is dropped by this."""
        wanted = set(request_ids)
        found: dict[str, RowCounts] = {}
        for store in (self._running, self._finished):
            for worker_id in list(store):
                name = worker_id if worker_id in wanted else worker_id[:-_SUFFIX]
                if name in wanted:
                    found[name] = store[worker_id].counts
                    if store[worker_id].finished:
                        del store[worker_id]
        return found

    def __len__(self) -> int:
        return len(self._running) + len(self._finished)
