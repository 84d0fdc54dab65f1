"""Threads are found, named and ordered by what they were first asked."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_help import at, make_turn, old_store

from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry import Retention, Score, StoreRecorder, TurnContent
from mixquant_agents.telemetry.store.connection import connect_writer
from mixquant_agents.telemetry.store.content import pack_content
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.questions import LONGEST, question_of
from mixquant_agents.telemetry.store.reader import THREAD_ORDERS, TurnStore
from mixquant_agents.telemetry.store.retention import retain
from mixquant_agents.telemetry.store.rows import to_microseconds


def asked(text: Any) -> TurnContent:
    return TurnContent(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}])


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([], None),
        ([{"role": "system", "content": "x"}], None),
        (["no message", {"role": "user", "content": None}], None),
        ([{"role": "user", "content": " What\n is  it? "}], "What is it?"),
        ([{"role": "user", "content": "an example"}, {"role": "user", "content": "the question"}], "the question"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, "b"]}], "a b"),
        ([{"role": "user", "content": "é" * 600}], "é" * (LONGEST - 1) + "…"),
    ],
)
def test_question_is_the_last_that_the_user_said(messages: list[Any], question: str | None) -> None:
    assert question_of(messages) == question


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_question_of_anything_is_a_line_or_nothing(message: Any) -> None:
    question = question_of([message, {"role": "user", "content": message}])
    assert question is None or (question == " ".join(question.split()) != "" and len(question) <= LONGEST)


def test_turn_that_started_first_says_the_question(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    recorder.record(make_turn(2, thread_id="t"), content=asked("the task of a sub-agent"))
    recorder.record(make_turn(1, thread_id="t"), content=asked("Grüße: WAS ist das?"))
    assert recorder.flush()
    recorder.record(make_turn(3, thread_id="t"), content=asked("and then?"))
    recorder.record(make_turn(4, thread_id="u"), content=TurnContent())
    recorder.close()
    store = TurnStore(path)
    assert store.question("t") == "Grüße: WAS ist das?"
    assert [thread.question for thread in store.threads()] == [None, "Grüße: WAS ist das?"]
    for search in ("grüsse", "was IST", "T"):  # a word of the question in any case, or of the name
        assert [thread.thread_id for thread in store.threads(search=search)] == ["t"], search
    assert not store.threads(search="sub-agent")
    assert not store.threads(search="%")


def test_threads_come_in_the_order_asked_for(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    rows = {"a": (3, 100, 50, "zebra"), "b": (1, 250, 0, "Apple"), "c": (2, 200, 200, None)}
    for start, (thread, (turns, prompt, cached, question)) in enumerate(rows.items()):
        for n in range(turns):
            for policy in ("exact", "mixquant-fp8"):
                recorder.record(
                    make_turn(
                        10 * start + n, thread_id=thread, policy=policy, prompt_tokens=prompt, cached_tokens=cached,
                        prefill_tokens=prompt - cached, exact_tokens=prompt - cached, total_seconds=float(prompt),
                        error="x" if thread == "c" else None, decode_tokens=prompt + start,
                    ),
                    content=asked(question) if question else None,
                )  # fmt: skip
    recorder.record_score(Score(thread_id="b", name="suite", score=0.5))
    recorder.record_score(Score(thread_id="a", name="suite", score=1.0))
    recorder.close()
    store = TurnStore(path)
    expected = {
        "last": "cba", "first": "cba", "question": "abc", "turns": "acb", "prompt": "cab", "cached": "cab",
        "decode": "cab", "seconds": "cab", "bad": "cba", "score": "abc",
    }  # fmt: skip
    assert expected.keys() == THREAD_ORDERS.keys()
    for order, threads in expected.items():
        assert "".join(thread.thread_id for thread in store.threads(order=order)) == threads, order
        backwards = [thread.thread_id for thread in store.threads(order=order, descending=False)]
        assert backwards[0] != threads[0] or order == "bad", order
        pages = [store.threads(order=order, limit=1, offset=n)[0].thread_id for n in range(3)]
        assert "".join(pages) == threads, order
    assert [thread.question for thread in store.threads(order="question", descending=False)] == ["Apple", "zebra", None]
    some = store.threads(TurnFilter(policy="exact", since=at(9)), order="turns")
    assert [(thread.thread_id, thread.turns) for thread in some] == [("c", 2), ("b", 1)]
    with pytest.raises(RequestError, match=r"'colour'.*last, first"):
        store.threads(order="colour")


def test_questions_and_scores_go_with_their_thread(path: Path) -> None:
    recorder = StoreRecorder(path, content=True)
    for n, thread in enumerate("ab"):
        recorder.record(make_turn(n * 86_400 * 9, thread_id=thread), content=asked(f"question {thread}"))
        recorder.record_score(Score(thread_id=thread, name="suite", score=1))
    recorder.close()
    with closing(connect_writer(path)) as connection:
        now = to_microseconds(at(86_400 * 9 + 10)) / 1e6
        assert retain(connection, Retention(max_age_days=5), now=now, seconds=60) == 1
        for table in ("questions", "scores"):
            assert connection.execute(f"SELECT thread_id FROM {table}").fetchall() == [("b",)]  # noqa: S608 # our names


def test_store_of_the_version_before_gets_its_questions(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(old_store(path, 3)) as connection:
        connection.execute("INSERT INTO series (id, model, engine, policy) VALUES (1, 'm', 'vllm', 'exact')")
        turns = [("later", 9, "t"), ("first", 5, "t"), (None, 1, "u"), ("other", 2, "u"), ("of no thread", 3, None)]
        for number, (text, started, thread) in enumerate(turns):
            connection.execute(
                "INSERT INTO turns (id, turn_id, thread_id, started_us, turn_index, series_id, aborted, "
                "record_version) VALUES (?, ?, ?, ?, 0, 1, 0, 1)",
                (number, f"turn-{number}", thread, started),
            )
            packed = pack_content(asked(text)) if text else b"damaged"
            connection.execute("INSERT INTO contents (turn, packed) VALUES (?, ?)", (number, packed))
    connect_writer(path).close()
    store = TurnStore(path)
    assert (store.question("t"), store.question("u")) == ("first", "other")


def test_scores_are_kept_by_thread_and_name(path: Path) -> None:
    recorder = StoreRecorder(path)
    for n, policy in enumerate(("exact", "mixquant-fp8")):
        recorder.record(make_turn(n, thread_id=policy, policy=policy))
        for at_second, score in ((5, 0.25), (4, 1.0)):
            recorder.record_score(
                Score(thread_id=policy, name="suite", score=score + n / 8, scored_at=at(at_second), comment="a word")
            )
    recorder.record_score(Score(thread_id="exact", name="other", score=float("nan")))
    recorder.record_score(Score(thread_id="without turns", name="suite", score=1.0))
    recorder.close()
    assert recorder.dropped == 1, "what is no number is left out, and nothing else with it"
    store = TurnStore(path)
    found = store.scores()
    assert [(scored.thread_id, scored.score, scored.comment) for scored in found] == [
        ("mixquant-fp8", 0.375, None),
        ("exact", 0.25, None),
    ], "the later score counts, whatever was written last; no word of it without content"
    assert [scored.thread_id for scored in store.scores(TurnFilter(policy="exact"))] == ["exact"]
    assert [scored.thread_id for scored in store.scores(TurnFilter(since=at(0.5)))] == ["mixquant-fp8"]
    assert not store.scores(TurnFilter(status="bad"))
    assert [thread.score for thread in store.threads()] == [0.375, 0.25]
