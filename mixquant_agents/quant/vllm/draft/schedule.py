"""How many tokens each step drafts, asked by vLLM's scheduler in the place of its own schedule by batch size; and how
many of them were right."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mixquant_agents.precision.drafting import PROBE_DRAFTS, Acceptance, DraftRule, Probes

__all__ = ["DraftCounts", "DraftSchedule"]

SUFFIX = 9
"""Length of what vLLM appends to a front-end request id: a hyphen and 8 hex digits."""

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
        allowed: the policy in force has drafts.
        total: of all requests since the start.
    """

    def __init__(
        self, scheduler: Any, rule: DraftRule, share_of: Callable[[int], float | None] = lambda batch: None
    ) -> None:
        """
        Args:
            scheduler: vLLM's, asked for the state of its requests.
            rule: when drafts pay.
            share_of: what the worker has measured of a draft step's time over an exact one's, by the number of
                requests; ``None``: nothing that is known here.
        """
        self._scheduler = scheduler
        self._rule = rule
        self._share_of = share_of
        self.fixed: int | None = None
        self.allowed = True
        self.total = DraftCounts()
        self._counts: OrderedDict[str, DraftCounts] = OrderedDict()
        self._acceptance: OrderedDict[str, Acceptance] = OrderedDict()
        self._of_all = Acceptance()
        self._probes = Probes()

    def count(self, request_id: str, drafted: int, accepted: int) -> None:
        """A step has verified ``drafted`` tokens of a request."""
        self.total.add(drafted, accepted)
        counts = self._counts.get(request_id)
        if counts is None:
            counts = self._counts[request_id] = DraftCounts()
            self._acceptance[request_id] = Acceptance(self._of_all.rate)
            if len(self._counts) > KEPT:
                self._acceptance.pop(self._counts.popitem(last=False)[0], None)
        counts.add(drafted, accepted)
        if drafted:
            self._of_all.add(drafted, accepted, keep=0.995)
            self._probes.saw(drafted, accepted)
            self._acceptance[request_id].add(drafted, accepted)

    def take(self, name: str) -> DraftCounts:
        """Counts of a request that has ended, by its front-end id; the scheduler's may have a suffix. Once: they are
        forgotten."""
        for request_id in reversed(self._counts):
            if name in (request_id, request_id[:-SUFFIX]):
                self._acceptance.pop(request_id, None)
                return self._counts.pop(request_id)
        return DraftCounts()

    def __getitem__(self, batch: int) -> int:
        if not self.allowed:
            return 0
        if self.fixed is not None:
            return self.fixed
        scheduler = self._scheduler
        kv_tokens, prefilling, rates = 0, False, 0.0
        for request in scheduler.running:
            kv_tokens += request.num_computed_tokens
            prefilling = prefilling or request.num_computed_tokens < request.num_prompt_tokens
            rates += self._acceptance.get(request.request_id, self._of_all).rate
        room = len(scheduler.running) < scheduler.max_num_running_reqs
        waits = prefilling or (room and bool(scheduler.waiting))
        rate = rates / max(len(scheduler.running), 1)
        share = self._share_of(batch)
        rule = self._rule if share is None else replace(self._rule, share=share)
        drafts = rule.drafts(batch, kv_tokens, waits, rate)
        if not drafts and self._probes.due and rule.drafts(batch, kv_tokens, waits, 1.0):
            drafts = PROBE_DRAFTS  # they may have become better
        self._probes.step(drafted=drafts > 0)
        return drafts
