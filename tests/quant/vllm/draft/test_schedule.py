"""What vLLM's scheduler is told to draft, and how verified drafts are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mixquant_agents.precision.drafting import DraftRule, Probes
from mixquant_agents.quant.vllm.draft import schedule
from mixquant_agents.quant.vllm.draft.schedule import DraftCounts, DraftSchedule


def scheduler(*requests: tuple[int, int], waiting: int = 0, places: int = 8) -> Any:
    """``requests``: tokens of the prompt, and tokens whose KV is there."""
    running = [
        SimpleNamespace(request_id=str(number), num_prompt_tokens=prompt, num_computed_tokens=done)
        for number, (prompt, done) in enumerate(requests)
    ]
    return SimpleNamespace(running=running, waiting=[None] * waiting, max_num_running_reqs=places)


def drafts(stand_in: Any, batch: int = 1) -> int:
    return DraftSchedule(stand_in, DraftRule(tokens=3, max_batch=4, max_kv_tokens=1000))[batch]


def test_writers_draft_and_too_many_do_not() -> None:
    assert drafts(scheduler((10, 30), (10, 40)), batch=2) == 3
    assert drafts(scheduler(*[(10, 30)] * 5), batch=5) == 0


def test_kv_tokens_of_all_requests_count() -> None:
    assert drafts(scheduler((10, 500), (10, 500)), batch=2) == 3
    assert drafts(scheduler((10, 500), (10, 501)), batch=2) == 0


def test_prompts_go_first() -> None:
    """Those half read, and those that can be begun; a queue behind a full engine waits for answers, not for a step."""
    assert drafts(scheduler((10, 30), (100, 64)), batch=2) == 0
    assert drafts(scheduler((10, 30), waiting=1)) == 0
    assert drafts(scheduler((10, 30), (10, 30), waiting=1, places=2), batch=2) == 3


def test_fixed_number_stands_above_the_rule() -> None:
    own = DraftSchedule(scheduler((10, 5000)), DraftRule(tokens=3, max_batch=1, max_kv_tokens=1))
    own.fixed = 2
    assert own[64] == 2


def test_counts_are_a_requests_own_and_taken_once() -> None:
    own = DraftSchedule(scheduler(), DraftRule(3, 4, 1000))
    own.count("a", 3, 2)
    own.count("b", 3, 0)
    own.count("a", 3, 3)
    assert own.take("a") == DraftCounts(cycles=2, drafted=6, accepted=5)
    assert own.take("a") == DraftCounts()
    assert own.total == DraftCounts(cycles=3, drafted=9, accepted=5)


def test_counts_that_nobody_takes_are_bounded() -> None:
    own = DraftSchedule(scheduler(), DraftRule(3, 4, 1000))
    for number in range(schedule.KEPT + 10):
        own.count(str(number), 1, 1)
    assert own.take("0") == DraftCounts()
    assert own.take(str(schedule.KEPT + 9)) == DraftCounts(1, 1, 1)


def test_drafts_that_are_wrong_stop_and_are_tried_again_ever_more_rarely() -> None:
    """By one draft a time, which costs a third of a whole cycle."""
    own = DraftSchedule(scheduler((10, 30)), DraftRule(3, 4, 1000))
    for _ in range(6):
        own.count("0", 3, 0)
    asked = []
    for _ in range(5 * Probes.LONGEST):
        asked.append(own[1])
        if asked[-1]:
            own.count("0", asked[-1], 0)
    assert set(asked) == {0, 1}
    assert asked.count(1) == 4
    for _ in range(40):
        own.count("0", 3, 3)
    assert own[1] == 3


def test_drafts_that_have_become_right_are_used_again() -> None:
    own = DraftSchedule(scheduler((10, 30)), DraftRule(3, 4, 1000))
    for _ in range(60):
        own.count("0", 3, 0)
    steps = 0
    while (drafts := own[1]) < 3:
        steps += 1
        if drafts:
            own.count("0", drafts, drafts)
    assert steps < 6 * Probes.LONGEST


def test_new_requests_begin_with_what_others_had() -> None:
    own = DraftSchedule(scheduler((10, 30)), DraftRule(3, 4, 1000))
    for number in range(400):
        own.count(f"other{number}", 3, 0)
    assert own[1] == 0


def test_counts_are_found_by_the_front_ends_id() -> None:
    own = DraftSchedule(scheduler(), DraftRule(3, 4, 1000))
    own.count("turn-7-0a1b2c3d", 3, 2)
    assert own.take("turn-7") == DraftCounts(1, 3, 2)


def test_share_that_the_worker_measured_decides() -> None:
    """Where exact steps are nearly as fast as drafts, nothing is drafted however many are right."""
    shares: dict[int, float | None] = {1: 0.6, 2: 0.99, 3: None}
    own = DraftSchedule(scheduler((10, 30)), DraftRule(3, 4, 1000), shares.get)
    for _ in range(50):
        own.count("0", 3, 3)
    assert [own[batch] for batch in (1, 2, 3)] == [3, 0, 3]
