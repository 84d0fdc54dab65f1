"""Which prefixes are held, and when they are asked for again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.kept import KeptPrefix, KeptPrefixes, Pieces, Reuse
from mixquant_agents.precision.static_prefix import BlockKeys


def prefix(thread: str, tokens: int, until: float = 100.0, first: int = 0) -> KeptPrefix:
    return KeptPrefix(thread, list(range(first, first + tokens)), BlockKeys("salt"), until)


def test_turn_finds_what_was_held_for_its_thread() -> None:
    kept = KeptPrefixes(10_000)
    kept.hold(prefix("a", 100))
    kept.hold(prefix("a", 50, first=7))  # a sub-agent of the same thread
    assert kept.take("b", range(200), "salt").held == 0
    assert kept.take("a", range(200), "salt").held == 100
    assert len(kept) == 1
    assert kept.take("a", range(200), "salt").held == 0


def test_newer_state_takes_the_place_of_what_it_goes_on_from() -> None:
    kept = KeptPrefixes(10_000)
    kept.hold(prefix("a", 100))
    kept.hold(prefix("a", 150))
    assert (len(kept), kept.tokens) == (1, 150)
    kept.hold(prefix("a", 300), limit=200)
    assert kept.tokens == 200


def test_state_that_has_no_room_leaves_its_beginning_held() -> None:
    kept = KeptPrefixes(1_000)
    assert kept.hold(prefix("a", 400))
    assert not kept.hold(prefix("a", 600))
    assert (len(kept), kept.tokens) == (1, 400)


def test_prefixes_are_asked_for_again_under_pressure_alone() -> None:
    kept = KeptPrefixes(1_000)
    held = prefix("a", 100)
    kept.hold(held)
    assert kept.used(400, 0.0, now=1.0) == []
    assert kept.used(100, 0.0, now=1.0) == [held]
    assert kept.used(900, 0.0, now=1.0) == []  # it is being asked for
    kept.refreshed(held, cached=96, block=16)
    assert kept.used(50, 0.9, now=1.0) == [held]  # little is free, and more was used meanwhile
    kept.refreshed(held, cached=16, block=16)
    assert (len(kept), kept.evicted) == (0, 1)


def test_time_and_run_let_go() -> None:
    kept = KeptPrefixes(1_000)
    kept.hold(prefix("a", 100, until=5.0))
    kept.hold(prefix("b", 100, first=500))
    kept.used(1, 0.0, now=5.0)
    assert len(kept) == 1
    assert (kept.release("b"), kept.release("b"), len(kept)) == (1, 0, 0)


def test_what_was_read_ahead_counts_once() -> None:
    kept = KeptPrefixes()
    kept.read_ahead(range(64), cached=16, salt="salt")
    kept.read_ahead(range(128), cached=64, salt="salt")
    assert kept.warmed == 48 + 64
    assert kept.take(None, range(200), "salt").read_ahead == (16, 128)
    assert kept.take(None, range(200), "salt").read_ahead is None


def test_what_was_done_for_another_salt_is_not_counted() -> None:
    """The same tokens are other blocks there."""
    kept = KeptPrefixes()
    held = prefix("a", 100)
    kept.hold(held)
    kept.read_ahead(range(64), cached=16, salt="s")
    assert kept.take("a", range(200), "other") == Reuse()
    assert kept.take(None, range(200), "s").read_ahead == (16, 64)
    assert kept.take("a", range(200), held.keys.salt).held == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400), st.sampled_from(["hold", "use", "end"]))))
def test_half_of_the_cache_is_never_exceeded(steps: list[tuple[str, int, str]]) -> None:
    kept = KeptPrefixes(1_000)
    for number, (thread, tokens, what) in enumerate(steps):
        if what == "hold":
            kept.hold(prefix(thread, tokens, until=number + 3.0, first=number))
        elif what == "use":
            for due in kept.used(tokens, 0.0, now=float(number)):
                kept.refreshed(due, cached=len(due.token_ids), block=16)
        else:
            kept.release(thread)
        assert kept.tokens <= 500


@given(st.lists(st.integers(1, 3_000), max_size=60), st.integers(1, 2_000), st.floats(0.1, 1.0))
def test_few_pieces_however_long_a_prompt_grows(arrivals: list[int], tokens: int, share: float) -> None:
    pieces, read, length, count = Pieces(tokens, share), 0, 0, 0
    for arrival in arrivals:
        length += arrival
        if pieces.worth_reading(read, length):
            read, count = length, count + 1
        assert length - read < max(tokens, share * read), "and no more than a piece is left for the turn"
    assert tokens * (1 + share) ** (count - 1) <= max(read, tokens) + 1
