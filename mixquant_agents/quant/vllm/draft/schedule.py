"""How many tokens each step drafts, asked by vLLM's scheduler in the place of its own schedule by batch size; and how
many of them were right."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from mixquant_agents.precision.drafting import DraftRule

__all__ = ["DraftCounts", "DraftSchedule"]

KEPT = 4096
"""Requests whose counts are kept until somebody reads them."""


@dataclass(slots=True)
class DraftCounts:
    """Drafts of one request, or of all.

    Attributes:
        cycles: steps that verified drafts.
        drafted: tokens verified.
        accepted: of those, tokens that were right.
    """

    cycles: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, drafted: int, accepted: int) -> None:
        """One more cycle."""
        self.cycles += 1
        self.drafted += drafted
        self.accepted += accepted


class DraftSchedule:
    """What vLLM's scheduler indexes with the number of requests in a step.

    Attributes:
        fixed: for measurements: so many tokens whatever the rule says; ``None``: the rule decides.
        total: of all requests since the start.
    """

    def __init__(self, scheduler: Any, rule: DraftRule) -> None:
        """``scheduler`` is vLLM's, asked for the state of its requests."""
        self._scheduler = scheduler
        self._rule = rule
        self.fixed: int | None = None
        self.total = DraftCounts()
        self._counts: OrderedDict[str, DraftCounts] = OrderedDict()

    def count(self, request_id: str, drafted: int, accepted: int) -> None:
        """A step has verified ``drafted`` tokens of a request."""
        self.total.add(drafted, accepted)
        counts = self._counts.get(request_id)
        if counts is None:
            counts = self._counts[request_id] = DraftCounts()
            if len(self._counts) > KEPT:
                self._counts.popitem(last=False)
        counts.add(drafted, accepted)

    def take(self, request_id: str) -> DraftCounts | None:
        """Counts of a request that has ended, once; ``None`` where nothing was drafted for it."""
        return self._counts.pop(request_id, None)

    def __getitem__(self, batch: int) -> int:
        if self.fixed is not None:
            return self.fixed
        scheduler = self._scheduler
        kv_tokens, prefilling = 0, False
        for request in scheduler.running:
            kv_tokens += request.num_computed_tokens
            prefilling = prefilling or request.num_computed_tokens < request.num_prompt_tokens
        room = len(scheduler.running) < scheduler.max_num_running_reqs
        return self._rule.drafts(batch, kv_tokens, prefilling or (room and bool(scheduler.waiting)))
