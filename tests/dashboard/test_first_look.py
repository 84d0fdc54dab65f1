"""What a first look shows: the latest activity, threads by their question, scores by policy, what a turn added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_help import make_turn
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.query import latest_activity, page_filter, threads_asked
from mixquant_agents.dashboard.report import thread_report
from mixquant_agents.dashboard.turn_page import Added, added_since, turn_detail
from mixquant_agents.telemetry import Score, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import from_microseconds, to_microseconds

START = to_microseconds("2026-03-01T12:00:00Z")


def at(seconds: float) -> str:
    return from_microseconds(START + round(seconds * 1e6))


def recorded(path: Path, *seconds: float, **values: Any) -> TurnStore:
    recorder = StoreRecorder(path)
    for start in seconds:
        recorder.record(make_turn(started_at=at(start), **values))
    recorder.close()
    return TurnStore(path)


def window(store: TurnStore, now: float, turn_filter: TurnFilter | None = None) -> tuple[float | None, float | None]:
    """The window, in seconds since the start."""
    fitting = latest_activity(store, turn_filter or TurnFilter(), now=START / 1e6 + now)
    ends = (fitting.since_us, fitting.until_us)
    first, last = (None if end is None else (end - START) / 1e6 for end in ends)
    return first, last


def test_first_look_fits_the_data(tmp_path: Path) -> None:
    store = recorded(tmp_path / "t.sqlite", 0, 10, 40)
    assert window(store, 60) == (0, None), "a minute of turns is a minute, to the present"
    first, last = window(store, 86_400)
    assert (first, last) == (0, pytest.approx(40.55, abs=1e-3)), "and nothing after them where they are long past"
    assert window(TurnStore(tmp_path / "t.sqlite"), 0, TurnFilter(policy="none")) == (None, None)


def test_first_look_leaves_out_what_is_long_past(tmp_path: Path) -> None:
    store = recorded(tmp_path / "t.sqlite", 0, *(30 * 86_400 + 20 * n for n in range(12)))
    assert window(store, 30 * 86_400 + 300) == (30 * 86_400, None)
    store = recorded(tmp_path / "few.sqlite", 0, 5 * 86_400)
    assert window(store, 5 * 86_400 + 1) == (0, None), "but of a few turns every one is shown"


def test_page_shows_the_newest_turns_where_the_address_says_no_time(tmp_path: Path) -> None:
    store = recorded(tmp_path / "t.sqlite", 0, 10, 40)
    assert page_filter(store, {})[0].since == at(0)
    assert page_filter(store, {"window": "all"})[0].since is None
    assert page_filter(store, {"since": at(20)})[0] == TurnFilter(since=at(20))
    page = str(views.overview_page(store, {}))
    assert "3 turns in all" in page
    assert "Turns per second" in page
    bar = str(views.filters_bar(store, "/", {}))
    assert "latest activity" in bar
    assert 'name="since"' not in bar


def test_live_state_says_how_old_the_newest_turn_is(tmp_path: Path) -> None:
    assert f'datetime="{at(5)}"' in str(views.live_state(recorded(tmp_path / "t.sqlite", 0, 5)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TurnStore:
    """Threads that were asked something, under two policies; three of four were scored, and one ran under both."""
    path = tmp_path_factory.mktemp("look") / "turns.sqlite"
    recorder = StoreRecorder(path, content=True)
    for n, (thread, policy) in enumerate([("a", "exact"), ("b", "fast"), ("c", "fast"), ("d", "exact"), ("d", "fast")]):
        turn = make_turn(started_at=at(n), thread_id=thread, policy=policy, emulated=policy == "fast")
        recorder.record(turn, content=asked(f"<b>Question</b> of {thread}"))
    for thread, score in (("a", 1.0), ("b", 0.5), ("c", 0.25), ("d", 0.0)):
        recorder.record_score(Score(thread_id=thread, name="suite", score=score))
    recorder.record_score(Score(thread_id="b", name="other suite", score=1.0))
    recorder.close()
    return TurnStore(path)


def asked(question: str, *more: Any, answer: Any = None) -> TurnContent:
    return TurnContent(messages=[{"role": "user", "content": question}, *more], answer=answer)


def test_scores_stand_by_policy_and_over_time(store: TurnStore) -> None:
    seen = overview(store, now=START / 1e6 + 20)
    assert {row.policy: (row.score, row.scored) for row in seen.policies} == {
        "exact": (1.0, 1),
        "fast": (pytest.approx(1.75 / 3), 3),
    }, "what ran under both counts for none"
    assert {row.name: dict(row.by_policy) for row in seen.scores} == {
        "suite": {("exact", False): (1.0, 1), ("fast", True): (0.375, 2)},
        "other suite": {("fast", True): (1.0, 1)},
    }
    for row in seen.policies:
        known = [mean for mean in row.score_means if mean is not None]
        assert len(row.score_means) == len(seen.points)
        assert len(known) == (1 if row.policy == "exact" else 2)
    page = str(views.overview_page(store, {"window": "all"}))
    assert "Score by policy, mean" in page
    assert "0.38" in page
    only = overview(store, TurnFilter(policy="exact"))
    assert [(row.policy, row.score) for row in only.policies] == [("exact", 1.0)]


def test_threads_are_listed_by_their_question(store: TurnStore) -> None:
    page = str(views.threads_page(store, {}))
    assert "&lt;b&gt;Question&lt;/b&gt; of a" in page
    assert page.index("of d") < page.index("of a"), "the newest first"
    page = str(views.threads_page(store, {"order": "-last"}))
    assert page.index("of a") < page.index("of d")
    assert 'aria-sort="ascending"' in page
    assert "order=last" in page
    assert "order=turns" in page
    assert "of b" in str(views.threads_page(store, {"search": "QUESTION</B> OF B"}))
    assert "No threads match" in str(views.threads_page(store, {"search": "nobody asked this"}))
    assert threads_asked({}) == {"search": None, "order": "last", "descending": True, "failed_tools": False}
    asked = threads_asked({"order": "-seconds"})
    assert (asked["order"], asked["descending"]) == ("seconds", False)


def test_thread_is_named_by_its_question_and_a_report_only_with_content(store: TurnStore) -> None:
    assert "<h1>&lt;b&gt;Question&lt;/b&gt; of a</h1>" in str(views.thread_page(store, {"id": "a"}))
    assert "Question" in thread_report(store, "a", content=True)
    assert "Question" not in thread_report(store, "a")


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "x"}


@pytest.mark.parametrize(
    ("before", "now", "added"),
    [
        (asked("q", answer=CALL), asked("q", CALL, RESULT), Added(2, 1, 0)),
        (asked("q", answer={**CALL, "reasoning_content": "hm"}), asked("q", CALL, RESULT), Added(2, 1, 0)),
        (asked("q"), asked("q", RESULT), Added(1, 1, 0)),
        (asked("q", answer=CALL), asked("another"), Added(0, 1, 2)),
        (asked("q", RESULT, answer=CALL), asked("q", CALL), Added(1, 1, 2)),
        (None, asked("q"), None),
        (asked("q"), None, None),
        (TurnContent(problem="damaged"), asked("q"), None),
    ],
)
def test_added_messages_are_those_after_what_was_there(
    before: TurnContent | None, now: TurnContent | None, added: Added | None
) -> None:
    assert added_since(before, now) == added


messages = st.lists(st.sampled_from([CALL, RESULT, {"role": "user", "content": "q"}, "no message"]), max_size=5)


@given(messages, messages)
def test_kept_and_new_are_all_that_was_sent(earlier: list[Any], now: list[Any]) -> None:
    added = added_since(TurnContent(messages=earlier), TurnContent(messages=now))
    assert added is not None
    assert (added.kept + added.new, added.kept + added.changed) == (len(now), len(earlier))
    assert earlier[: added.kept] == now[: added.kept]
    grown = added_since(TurnContent(messages=earlier), TurnContent(messages=[*earlier, *now]))
    assert grown == Added(len(earlier), len(now), 0)


def test_turn_shows_what_it_added(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    recorder = StoreRecorder(path, content=True)
    for index, (tokens, content) in enumerate(
        [(1000, asked("the question", answer=CALL)), (1064, asked("the question", CALL, RESULT)), (None, asked("q"))]
    ):
        counts = dict.fromkeys(("cached_tokens", "prefill_tokens", "quantized_tokens", "exact_tokens"))
        turn = make_turn(turn_id=f"t{index}", turn_index=index, started_at=at(index), prompt_tokens=tokens, **counts)
        recorder.record(turn, content=content)
    recorder.close()
    store = TurnStore(path)
    pages = []
    for index in range(3):
        turn_shown = store.turn(f"t{index}")
        assert turn_shown is not None
        pages.append(str(turn_detail(store, turn_shown)).replace("\u202f", " "))
    assert "Added since" not in pages[0]
    assert "Added since turn 0" in pages[1]
    assert "grew by <b>64 tokens</b>, to 1 064" in pages[1]
    assert "1 new message." in pages[1]
    folded = pages[1][pages[1].index("<details") : pages[1].index("</details>")]
    assert "2 messages that turn 0 ended with" in folded
    assert "the question" in folded
    assert "42" not in folded
    assert "By how much the prompt grew is not known." in pages[2]
    assert "2 of the messages" in pages[2] or "3 of the messages" in pages[2]
