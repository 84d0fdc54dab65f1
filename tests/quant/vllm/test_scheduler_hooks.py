"""Prefills that vLLM's own scheduler leaves for a later step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.request_queue import PriorityRequestQueue, SchedulingPolicy
from vllm.v1.request import RequestStatus

from mixquant_agents.config import BACKGROUND_PRIORITY, BACKGROUND_ROWS
from mixquant_agents.quant.deferral import BACKGROUND_GAP
from mixquant_agents.quant.vllm import scheduler_hooks


class Request:
    def __init__(self, name: str, priority: int = 0, rows: int = 100, status: Any = RequestStatus.WAITING) -> None:
        self.name, self.priority, self.rows, self.status = name, priority, rows, status
        self.is_prefill_chunk = False

    def __lt__(self, other: Request) -> bool:
        return (self.priority, self.name) < (other.priority, other.name)


class Scheduler:
    """Fills a step as vLLM's does: running ones first, then the queue; a prompt takes what is left of the budget."""

    def __init__(self, *waiting: Request, places: int = 8, budget: int = 8192, chunked: bool = True) -> None:
        self.policy = SchedulingPolicy.PRIORITY
        self.running: list[Request] = []
        self.waiting: Any = PriorityRequestQueue()
        for request in waiting:
            self.waiting.add_request(request)
        self.max_num_running_reqs = self.max_num_active_reqs = places
        self.max_num_scheduled_tokens = budget
        self.num_spec_tokens = 0
        self.scheduler_config = SimpleNamespace(enable_chunked_prefill=chunked)
        self.blocked = False

    def schedule(self) -> Any:
        budget, rows = self.max_num_scheduled_tokens, {}
        for request in self.running:
            rows[request.name] = min(budget, request.rows if request.is_prefill_chunk else 1)
            budget -= rows[request.name]
        while self.waiting and budget and len(self.running) < self.max_num_active_reqs and not self.blocked:
            request = self.waiting.pop_request()
            self.running.append(request)
            rows[request.name] = min(budget, request.rows)
            budget -= rows[request.name]
        assert len(self.running) <= self.max_num_running_reqs
        for request in self.running:
            if request.name in rows and (request.is_prefill_chunk or request.status == RequestStatus.WAITING):
                request.status = RequestStatus.RUNNING
                request.rows -= rows[request.name]
                request.is_prefill_chunk = request.rows > 0
        return SimpleNamespace(rows=rows, total_num_scheduled_tokens=sum(rows.values()))


schedule = scheduler_hooks._schedule(Scheduler.schedule)


def begun(scheduler: Scheduler, request: Request) -> Request:
    request.is_prefill_chunk, request.status = True, RequestStatus.RUNNING
    scheduler.running.append(request)
    return request


def writing(scheduler: Scheduler, name: str) -> None:
    scheduler.running.append(Request(name, status=RequestStatus.RUNNING))


def test_urgent_prompt_has_the_step_to_itself() -> None:
    scheduler = Scheduler(Request("urgent", 0, 500), Request("other", 10, 3000))
    writing(scheduler, "writer")
    slow = begun(scheduler, Request("slow", 10, 5000))
    assert schedule(scheduler).rows == {"writer": 1, "urgent": 500}
    assert slow in scheduler.running
    assert len(scheduler.waiting) == 1
    assert (scheduler.max_num_running_reqs, scheduler.max_num_scheduled_tokens) == (8, 8192)
    step = schedule(scheduler).rows
    assert step == {"writer": 1, "urgent": 1, "slow": 2046}, "and the others' steps are short from now on"


def test_places_of_what_waits_are_not_given_away() -> None:
    scheduler = Scheduler(Request("first", 0), Request("second", 0), places=2)
    begun(scheduler, Request("slow", 10, 5000))
    assert schedule(scheduler).rows == {"first": 100}
    assert len(scheduler.running) == 2


@pytest.mark.parametrize("status", [RequestStatus.WAITING_FOR_REMOTE_KVS, RequestStatus.WAITING])
def test_request_that_cannot_begin_holds_nobody_up(status: RequestStatus) -> None:
    """Its KV is on the way, or there is no memory for it: then what holds the memory has to go on."""
    scheduler = Scheduler(Request("urgent", 0, 500, status))
    scheduler.blocked = True
    begun(scheduler, Request("slow", 10, 5000))
    steps = [schedule(scheduler).rows for _ in range(2)]
    assert any("slow" in rows for rows in steps)


def test_full_engine_reads_on() -> None:
    scheduler = Scheduler(Request("urgent", 0, 500), places=1)
    begun(scheduler, Request("slow", 10, 5000))
    assert schedule(scheduler).rows == {"slow": 5000}


def test_reading_ahead_waits_for_its_step() -> None:
    gap = BACKGROUND_GAP
    scheduler = Scheduler(Request("ahead", BACKGROUND_PRIORITY, BACKGROUND_ROWS + 953))
    writing(scheduler, "writer")
    steps = [schedule(scheduler).rows for _ in range(gap + 66)]
    assert [number for number, rows in enumerate(steps) if len(rows) > 1] == [0, gap, *range(gap + 1, gap + 66)]
    assert steps[0]["ahead"] == BACKGROUND_ROWS - 1, "the writer's row is one of them"
    assert steps[gap]["ahead"] == 954
    assert steps[gap + 1]["ahead"] == 1, "the one token that reading ahead writes"


def test_prompt_that_must_be_read_whole_is_not_cut() -> None:
    scheduler = Scheduler(Request("ahead", BACKGROUND_PRIORITY, 3000), chunked=False)
    assert schedule(scheduler).rows == {"ahead": 3000}


def test_schedulers_by_arrival_are_left_alone() -> None:
    scheduler = Scheduler(Request("urgent", 0, 500))
    scheduler.policy = SchedulingPolicy.FCFS
    begun(scheduler, Request("slow", 10, 5000))
    assert schedule(scheduler).rows == {"slow": 5000, "urgent": 500}
    assert scheduler_hooks.mixquant_deferral(SimpleNamespace(scheduler=scheduler), {}) is None


def test_settings_are_changed_and_counts_read() -> None:
    scheduler = Scheduler(Request("urgent", 0, 500))
    begun(scheduler, Request("slow", 10, 5000))
    core = SimpleNamespace(scheduler=scheduler)
    scheduler_hooks.mixquant_deferral(core, {"enabled": False})
    assert schedule(scheduler).rows == {"slow": 5000, "urgent": 500}
    assert scheduler_hooks.mixquant_deferral(core, {"enabled": True, "step_rows": 512})["deferred"] == 0
    scheduler.waiting.add_request(Request("again", 0, 500))
    begun(scheduler, Request("slower", 10, 5000))
    schedule(scheduler)
    assert scheduler_hooks.mixquant_deferral(core, {})["deferred"] == 1
