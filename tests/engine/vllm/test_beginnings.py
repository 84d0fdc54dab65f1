"""Which static beginnings an engine reads exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.beginnings import PATIENCE, SharedBeginnings


def test_beginnings_are_exact_until_several_in_a_row_were_nobody_elses() -> None:
    seen = SharedBeginnings()
    assert [seen.exact(n, opens=True) for n in range(PATIENCE + 3)] == [True] * PATIENCE + [False] * 3


def test_second_conversation_makes_a_beginning_exact_and_new_ones_too() -> None:
    seen = SharedBeginnings()
    for n in range(PATIENCE):
        seen.exact(n, opens=True)
    assert not seen.exact("agent", opens=True)
    assert not seen.exact("agent", opens=False), "a later turn of the same conversation is nobody else"
    assert seen.exact("agent", opens=True)
    assert seen.exact("agent", opens=False)
    assert seen.exact("another agent", opens=True), "beginnings are shared here after all"


def test_beginning_that_was_read_ahead_is_exact_at_once() -> None:
    seen = SharedBeginnings()
    for n in range(PATIENCE):
        seen.exact(n, opens=True)
    seen.will_be_shared("warmed")
    assert seen.exact("warmed", opens=True)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=80))
def test_what_was_read_exact_stays_exact(sights: list[tuple[int, bool]]) -> None:
    """Else a thread would lose the blocks that it has in the cache."""
    seen, exact = SharedBeginnings(), set()
    for beginning, opens in sights:
        now = seen.exact(beginning, opens=opens)
        assert now or beginning not in exact
        if now:
            exact.add(beginning)
