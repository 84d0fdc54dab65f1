"""Has vLLM's scheduler leave prefills for a later step (:mod:`mixquant_agents.quant.deferral`).

Around one call of ``schedule`` the scheduler does not see what waits: half-read prompts are taken out of its running
requests, its queue ends before the first request that is less urgent, and its token budget is lowered. All of it is put
back afterwards; a request that is not scheduled keeps its blocks, as where the budget ran out before it.

Only schedulers by priority are touched. Installed with the plugin, in the process that schedules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mixquant_agents.errors import EngineStartError
from mixquant_agents.quant.deferral import Deferral, PrefillDeferral
from mixquant_agents.quant.vllm.contract import check, installed_source
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_scheduler", "mixquant_deferral"]

_STATE = "mixquant_deferring"


@dataclass(slots=True)
class _Deferring:
    """Of one scheduler: the rule, and whether the last step came to nothing for its sake."""

    rule: PrefillDeferral = field(default_factory=PrefillDeferral)
    stuck: bool = False


def hook_scheduler() -> None:
    """Hook vLLM in this process, before any engine is made. Idempotent; a release that lacks a symbol stays as is."""
    try:
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.core import EngineCore

        if check(installed_source(), "deferral", optional=True):
            return
        setattr(EngineCore, mixquant_deferral.__name__, mixquant_deferral)
        wrap(Scheduler, "schedule", _schedule)
    except (ImportError, EngineStartError):
        return


def mixquant_deferral(self: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What was deferred since the start, after ``settings`` (fields of :class:`PrefillDeferral`) were put in force;
    ``None`` where the scheduler goes by arrival. A method of vLLM's EngineCore, which the front end calls by name."""
    state = _state(self.scheduler)
    if state is None:
        return None
    for name, value in settings.items():
        setattr(state.rule, name, value)
    return {name: value for name, value in asdict(state.rule).items() if not name.startswith("_")}


def _state(scheduler: Any) -> _Deferring | None:
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    if scheduler.policy != SchedulingPolicy.PRIORITY:
        return None
    state = vars(scheduler).get(_STATE)
    if not isinstance(state, _Deferring):
        state = vars(scheduler)[_STATE] = _Deferring()
    return state


def _schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = _state(self)
        if state is None:
            return original(self, *args, **kwargs)
        decode_rows = sum(not request.is_prefill_chunk for request in self.running) * (1 + self.num_spec_tokens)
        begun = [request for request in self.running if request.is_prefill_chunk]
        head = _head(self)
        waiting = None if head is None else head.priority
        deferral = state.rule.decide((each.priority for each in begun), waiting, decode_rows, time.monotonic())
        if deferral is None or state.stuck:
            state.stuck = False
            return original(self, *args, **kwargs)
        withheld = [each for each in begun if deferral.up_to is not None and each.priority > deferral.up_to]
        output = _without(self, deferral, withheld, lambda: original(self, *args, **kwargs))
        state.rule.deferred += bool(withheld) or (head is not None and head is _head(self))
        # What is urgent may wait for memory or a place that only the less urgent can give back.
        state.stuck = not output.total_num_scheduled_tokens or (
            bool(withheld) and head is not None and head.priority == deferral.up_to and head is _head(self)
        )
        return output

    return schedule


def _head(scheduler: Any) -> Any:
    """The first request that waits, if it can be begun in this step; ``None`` otherwise."""
    from vllm.v1.request import RequestStatus

    if len(scheduler.running) >= scheduler.max_num_running_reqs or not scheduler.waiting:
        return None
    request = scheduler.waiting.peek_request()
    return request if request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) else None


def _without(scheduler: Any, deferral: Deferral, withheld: list[Any], schedule: Callable[[], Any]) -> Any:
    """Call ``schedule`` while the scheduler does not see what the step leaves out."""
    queue, budget = scheduler.waiting, scheduler.max_num_scheduled_tokens
    max_running, max_active = scheduler.max_num_running_reqs, getattr(scheduler, "max_num_active_reqs", None)
    left_out = {id(each) for each in withheld}
    scheduler.running = [each for each in scheduler.running if id(each) not in left_out]
    scheduler.max_num_running_reqs = max_running - len(withheld)  # they keep their places
    if max_active is not None:  # newer releases
        scheduler.max_num_active_reqs = max_active - len(withheld)
    if deferral.up_to is not None:
        scheduler.waiting = _UpTo(queue, deferral.up_to)
    if deferral.rows is not None and scheduler.scheduler_config.enable_chunked_prefill:
        scheduler.max_num_scheduled_tokens = min(budget, deferral.rows)
    try:
        return schedule()
    finally:
        scheduler.running.extend(withheld)
        scheduler.waiting = queue
        scheduler.max_num_scheduled_tokens = budget
        scheduler.max_num_running_reqs = max_running
        if max_active is not None:
            scheduler.max_num_active_reqs = max_active


class _UpTo:
    """vLLM's queue of waiting requests, as if it ended before the first that is less urgent than ``priority``."""

    def __init__(self, queue: Any, priority: int) -> None:
        self._queue = queue
        self._priority = priority

    def __bool__(self) -> bool:
        return bool(self._queue) and self._queue.peek_request().priority <= self._priority

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Any:
        return iter(self._queue)

    def add_request(self, request: Any) -> None:
        self._queue.add_request(request)

    def peek_request(self) -> Any:
        return self._queue.peek_request()

    def pop_request(self) -> Any:
        return self._queue.pop_request()

    def prepend_request(self, request: Any) -> None:
        self._queue.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        self._queue.prepend_requests(requests)

    def remove_request(self, request: Any) -> None:
        self._queue.remove_request(request)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        self._queue.remove_requests(requests)
