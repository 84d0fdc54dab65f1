"""Turns kept by what their conversation says."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.history import WrittenAnswers, WrittenTurn, conversation_keys

USER = {"role": "user", "content": "How deep?"}


def answer(arguments: str = '{"a": 1, "b": [2]}', **fields: object) -> dict[str, object]:
    call = {"id": "c1", "type": "function", "function": {"name": "depth", "arguments": arguments}}
    return {"role": "assistant", "content": "Look.", "reasoning_content": "Hm.", "tool_calls": [call], **fields}


def key(*messages: dict[str, object], tools: tuple[dict[str, object], ...] = ()) -> bytes:
    return conversation_keys(messages, tools, {})[1]


def test_key_is_what_the_conversation_says() -> None:
    same = key(USER, answer())
    assert key(USER, answer('{"b":[2],"a":1}')) == same  # a dict in between may be in any order
    assert key(USER, {**answer(), "content": "Look. "}) != same
    assert key(USER, answer(reasoning_content="Hm!")) != same
    assert key(USER, {name: value for name, value in answer().items() if name != "reasoning_content"}) != same
    assert key(USER, answer('{"a": 2, "b": [2]}')) != same
    assert key({"role": "system", "content": "s"}, USER, answer()) != same
    assert key(USER, answer(), tools=({"type": "function"},)) != same


def test_broken_arguments_are_compared_as_text() -> None:
    assert key(USER, answer('{"a": ')) == key(USER, answer('{"a": '))
    assert key(USER, answer('{"a": ')) != key(USER, answer('{"a":'))
    assert key(USER, answer('"x')) != key(USER, answer(json.dumps('"x')))


def test_newest_turn_of_a_conversation_is_taken() -> None:
    answers = WrittenAnswers()
    for name in "ab":
        answers.keep(name.encode(), None, [1, 2], stopped=False)
    assert [place for place, _ in filter(None, [answers.newest([(1, b"a"), (3, b"b"), (5, b"c")])])] == [3]
    assert answers.newest([(1, b"x")]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.booleans()), max_size=40), st.integers(1, 200))
def test_memory_is_bounded_and_chains_stay_whole(turns: list[tuple[int, int, bool]], limit: int) -> None:
    """Whatever is kept in whatever order: never more tokens than the limit, and what is found is what was kept."""
    answers = WrittenAnswers(limit)
    written: dict[bytes, list[int]] = {}
    threads: dict[int, bytes] = {}
    for number, (thread, length, stopped) in enumerate(turns):
        before = answers.newest([(0, threads[thread])]) if thread in threads else None
        start = before[1].tokens if before is not None else []
        own, name = [number] * length, str(number).encode()
        answers.keep(name, before[1] if before is not None else None, own, stopped=stopped)
        threads[thread], written[name] = name, start + own[: length - stopped]
        assert answers.tokens <= limit
        for kept in written:
            if (found := answers.newest([(0, kept)])) is not None:
                assert found[1].tokens == written[kept]
                assert found[1].length - found[1].stopped == len(written[kept])


def held_tokens(answers: WrittenAnswers) -> int:
    """Tokens of all turns that the memory keeps alive, each once."""
    alive: dict[int, int] = {}
    for turn in answers._turns.values():
        walked: WrittenTurn | None = turn
        while walked is not None:
            alive[id(walked)] = len(walked.own)
            walked = walked.before
    return sum(alive.values())


def test_what_is_counted_is_all_that_is_held_where_a_conversation_begins_again() -> None:
    """A benchmark asks the same question again and again, and the tools answer differently each time."""
    answers = WrittenAnswers(2_000)
    for number in range(50):
        answers.keep(b"question", None, [1] * 100, stopped=True)
        first = answers.newest([(1, b"question")])
        assert first is not None
        answers.keep(str(number).encode(), first[1], [2, number], stopped=True)
        assert held_tokens(answers) == answers.tokens <= 2_000
        second = answers.newest([(1, str(number).encode())])
        assert second is not None
        assert second[1].tokens == [1] * 99 + [2]


def test_turn_whose_beginning_was_forgotten_while_it_ran_is_kept_whole() -> None:
    answers = WrittenAnswers(10)
    answers.keep(b"a", None, [1, 2, 3, 4], stopped=True)
    first = answers.newest([(1, b"a")])
    assert first is not None
    answers.keep(b"other", None, [9] * 8, stopped=False)
    answers.keep(b"b", first[1], [5, 6], stopped=False)
    second = answers.newest([(3, b"b")])
    assert second is not None
    assert (second[1].tokens, second[1].length) == ([1, 2, 3, 5, 6], 5)
    assert held_tokens(answers) == answers.tokens == 5
