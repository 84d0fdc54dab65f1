"""What a solved task cost: the engine's time, divided among the tasks that shared it."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_workflows.runner.results import summarise
from mixquant_workflows.runner.run import Share, SharedTime


def test_time_is_divided_among_those_that_run() -> None:
    now = [0.0]
    shared = SharedTime(lambda: now[0])
    with ExitStack() as first, ExitStack() as second:
        one = first.enter_context(shared.share())
        now[0] = 2.0
        two = second.enter_context(shared.share())
        now[0] = 6.0
        first.close()
        now[0] = 9.0
    now[0] = 20.0  # nobody runs
    assert (one.seconds, two.seconds) == (4.0, 5.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=30))
def test_shares_add_up_to_the_time_in_which_any_ran(steps: list[tuple[float, bool]]) -> None:
    now, busy = 0.0, 0.0
    shared = SharedTime(lambda: now)
    running: list[ExitStack] = []
    shares: list[Share] = []
    for seconds, begins in steps:
        now += seconds
        busy += seconds * bool(running)
        if begins:
            stack = ExitStack()
            shares.append(stack.enter_context(shared.share()))
            running.append(stack)
        elif running:
            running.pop(0).close()
    while running:
        running.pop().close()
    assert sum(share.seconds for share in shares) == pytest.approx(busy)


def test_summary_says_what_a_solved_task_cost() -> None:
    row = {"suite": "s", "turns": [], "seconds": 1.0}
    rows = [{**row, "policy": "a", "case": str(n), "score": float(n < 2), "engine_seconds": 3.0} for n in range(4)]
    rows += [{**row, "policy": "b", "case": "0", "score": 0.0, "engine_seconds": 3.0}]
    rows += [{**row, "policy": "old", "case": "0", "score": 1.0}]
    figures = summarise(rows)["s"]
    assert (figures["a"]["engine_s"], figures["a"]["engine_s_per_solved"]) == (12.0, 6.0)
    assert figures["b"]["engine_s_per_solved"] is None  # nothing was solved
    assert figures["old"]["engine_s"] is None  # of a file from before it was measured
