"""How many tokens each step drafts: asked by vLLM's scheduler, in the place of its own schedule by batch size."""

from __future__ import annotations

from typing import Any

from mixquant_agents.precision.drafting import DraftRule

__all__ = ["DraftSchedule"]


class DraftSchedule:
    """What vLLM's scheduler indexes with the number of requests in a step.

    Attributes:
        fixed: for measurements: so many tokens whatever the rule says; ``None``: the rule decides.
    """

    def __init__(self, scheduler: Any, rule: DraftRule) -> None:
        """``scheduler`` is vLLM's, asked for the state of its requests."""
        self._scheduler = scheduler
        self._rule = rule
        self.fixed: int | None = None

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
