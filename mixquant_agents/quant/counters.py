"""Prompt rows per request, by how they ran. Kept in the worker, bounded, dropped once read after the end.

For each request ``quantized + exact`` is the number of prompt tokens it prefilled (its prompt less what the prefix
cache gave). Rows that run again, after a preemption or after lost KV blocks, count in ``recomputed`` and nowhere else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from mixquant_agents.precision.plan import RowPlan

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
        for index, (name, num_prompt_tokens, computed, scheduled, _) in enumerate(plan.requests):
            entry = self._running.get(name)
            if entry is None:
                entry = self._running[name] = _Entry(RowCounts())
            end = computed + scheduled
            known_end = end - drafts.get(name, 0) if drafts else end
            if computed >= num_prompt_tokens and computed >= entry.redo_until:  # new answer rows: not counted
                entry.done = max(entry.done, known_end)
                continue
            prompt_end = max(computed, min(end, num_prompt_tokens))
            fresh = max(computed, min(prompt_end, entry.done))  # prompt rows before it run again
            quantized = plan.quantized_between(index, fresh, prompt_end)
            generated_again = min(end, entry.redo_until) - max(computed, num_prompt_tokens)
            entry.counts.quantized += quantized
            entry.counts.exact += prompt_end - fresh - quantized
            entry.counts.recomputed += fresh - computed + max(0, generated_again)
            entry.done = max(entry.done, known_end)

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
        names = set(request_ids)
        counts: dict[str, RowCounts] = {}
        for store in (self._running, self._finished):
            for worker_id in list(store):
                name = worker_id if worker_id in names else worker_id[:-_SUFFIX]
                if name in names:
                    counts[name] = store[worker_id].counts
                    if store[worker_id].finished:
                        del store[worker_id]
        return counts

    def __len__(self) -> int:
        return len(self._running) + len(self._finished)
