"""What followed the same tokens before, and when it is drafted in the twin's place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.states import RequestState

from mixquant_agents.quant.vllm.draft.lookup import AFTER, NGRAM, Lookup, guesses


def in_plain_words(tokens: list[int], count: int) -> list[int] | None:
    for end in range(len(tokens) - count, NGRAM - 1, -1):
        if tokens[end - NGRAM : end] == tokens[-NGRAM:]:
            return tokens[end : end + count]
    return None


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_guess_is_what_followed_the_last_occurrence(rows: list[list[int]], count: int, room: int) -> None:
    width = max(map(len, rows)) + room
    padded = torch.full((len(rows), width), 1, dtype=torch.int32)  # what lies behind a request's end is no part of it
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    guessed, occurred = guesses(padded, torch.tensor([len(tokens) for tokens in rows]), count)
    for row, tokens in enumerate(rows):
        expected = in_plain_words(tokens, count)
        assert bool(occurred[row]) == (expected is not None)
        assert expected is None or guessed[row].tolist() == expected


@pytest.fixture(autouse=True)
def memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own way without pinned memory."""
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)


class Run:
    """Requests that write; the twin guesses ``twin``'s next tokens."""

    def __init__(self, *texts: list[int], drafts: int = 3) -> None:
        self.texts, self.drafts = list(texts), drafts
        self.states = RequestState(len(texts), 4096, 4096, drafts, 1000, torch.device("cpu"))
        self.lookup = Lookup(self.states)

    def cycle(self, *new: list[int], twin: list[list[int]] | None = None) -> list[list[int]] | None:
        """Each request has written ``new``; ``twin`` is what the twin would draft."""
        for row, tokens in enumerate(new):
            self.texts[row] += tokens
            self.states.all_token_ids.gpu[row, : len(self.texts[row])] = torch.tensor(self.texts[row])
            self.states.total_len.gpu[row] = len(self.texts[row])
        drafting = torch.tensor([bool(tokens) for tokens in new])
        sampled = torch.tensor([len(tokens) for tokens in new])
        places = torch.arange(len(new), dtype=torch.int32)
        drafted = self.lookup.drafts(places, drafting, sampled, self.drafts, max(map(len, self.texts)) + self.drafts)
        if drafted is None:
            guess = twin if twin is not None else [[-1] * self.drafts for _ in new]
            self.lookup.judge(torch.tensor(guess), drafting)
            return None
        return [row.tolist() for row in drafted]


def copying(start: int = 100, step: int = 4) -> tuple[Run, int]:
    """A request that copies, whose lookups have been seen to guess as the twin does; where it is."""
    run = Run(list(range(100, 300)))
    at = start
    for _ in range(AFTER):
        assert run.cycle(list(range(at, at + step)), twin=[list(range(at + step, at + step + 3))]) is None
        at += step
    return run, at


def test_copies_are_drafted_without_the_twin() -> None:
    run, at = copying()
    for _ in range(5):
        assert run.cycle(list(range(at, at + 4))) == [[at + 4, at + 5, at + 6]]
        at += 4


def test_twin_drafts_while_lookups_guess_otherwise() -> None:
    run = Run(list(range(100, 300)))
    for cycle in range(6):
        at = 100 + 4 * cycle
        assert run.cycle(list(range(at, at + 4)), twin=[[1, 2, 3]]) is None


def test_copy_ends_where_the_tokens_never_occurred() -> None:
    run, _ = copying()
    assert run.cycle([7, 8, 9]) is None
    assert run.cycle([10, 11]) is None, "and begins anew only once lookups guess as the twin does"


@pytest.mark.parametrize(("right", "goes_on"), [(3, True), (2, True), (1, False), (0, False)])
def test_copy_ends_where_less_than_half_was_right(right: int, goes_on: bool) -> None:
    run, at = copying()
    assert run.cycle(list(range(at, at + 4))) is not None
    drafted = run.cycle(list(range(at + 4, at + 5 + right)))  # so many drafts and one token more
    assert (drafted is not None) == goes_on


def test_one_request_without_an_occurrence_keeps_the_twin() -> None:
    run = Run(list(range(100, 200)), list(range(300, 340)))
    for cycle in range(5):
        at = 100 + 4 * cycle
        new = [list(range(at, at + 4)), [900 + 4 * cycle + place for place in range(4)]]
        assert run.cycle(*new, twin=[list(range(at + 4, at + 7)), [0, 0, 0]]) is None


def test_request_that_is_still_read_does_not_count() -> None:
    run = Run(list(range(100, 200)), [1, 2, 3])
    for cycle in range(AFTER + 2):
        at = 100 + 4 * cycle
        drafted = run.cycle(list(range(at, at + 4)), [], twin=[list(range(at + 4, at + 7)), [0, 0, 0]])
        assert (drafted is None) == (cycle < AFTER)
    assert drafted is not None
    assert drafted[0] == [at + 4, at + 5, at + 6]
