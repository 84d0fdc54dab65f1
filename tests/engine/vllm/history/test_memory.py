"""Turns kept by what their conversation says."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.history import WrittenAnswers, conversation_keys

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
