"""Counts of prompt rows, over any schedule with chunks, prefix hits, preemptions and speculative rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.plan import Reach, RequestRows, RowRule, plan_rows
from mixquant_agents.quant.counters import RowCounter

RULE = RowRule(Reach.BEFORE_LAST)


def run(counter: RowCounter, computed: int, scheduled: int, prompt: int, name: str = "r", drafts: int = 0) -> None:
    plan = plan_rows([RequestRows(name, prompt, computed, scheduled)], RULE)
    counter.record(plan, {name: drafts} if drafts else {})


@given(st.integers(1, 60), st.integers(0, 59), st.data())
def test_quantized_and_exact_add_up_to_the_prefill_whatever_is_preempted(
    prompt: int, cached: int, data: st.DataObject
) -> None:
    cached = min(cached, prompt - 1)
    counter, position, known, again = RowCounter(), cached, prompt, 0
    highest, preemptions = cached, 0
    for _ in range(data.draw(st.integers(1, 12))):
        if position > cached and data.draw(st.booleans()) and data.draw(st.booleans()):
            counter.preempted(["r"])
            preemptions += 1
            position = data.draw(st.integers(0, min(position, known - 1)))
        scheduled = data.draw(st.integers(1, max(1, known - position)))
        run(counter, position, scheduled, prompt)
        again += max(0, min(position + scheduled, highest) - position)
        position += scheduled
        highest = max(highest, position)
        known = max(known, position + 1)  # a token was sampled once all known ones had run
    while position < prompt:
        again += max(0, min(position + 1, highest) - position)
        run(counter, position, 1, prompt)
        position += 1
        highest = max(highest, position)
    counts = counter.read(["r"])["r"]
    assert counts.quantized == max(0, prompt - 1 - cached)
    assert counts.exact == 1
    assert counts.recomputed == again
    assert counts.preemptions == preemptions


def test_rejected_drafts_are_not_recomputed_rows() -> None:
    counter = RowCounter()
    run(counter, 0, 8, prompt=8)
    run(counter, 8, 4, prompt=8, drafts=3)  # all three rejected
    run(counter, 9, 4, prompt=8, drafts=3)
    counts = counter.read(["r"])["r"]
    assert (counts.quantized, counts.exact, counts.recomputed) == (7, 1, 0)


def test_preemption_during_speculation_counts_known_rows_only() -> None:
    counter = RowCounter()
    run(counter, 0, 8, prompt=8)
    run(counter, 8, 4, prompt=8, drafts=3)  # accepted none: 9 rows are known to have run
    counter.preempted(["r"])
    run(counter, 0, 10, prompt=8)
    assert counter.read(["r"])["r"].recomputed == 9


def test_front_end_ids_match_the_workers_suffixed_ones() -> None:
    counter = RowCounter()
    run(counter, 0, 5, prompt=5, name="chat-7-0a1b2c3d")
    run(counter, 0, 9, prompt=9, name="chat-77-0a1b2c3d")
    assert {name: c.quantized for name, c in counter.read(["chat-7", "chat-77", "chat"]).items()} == {
        "chat-7": 4,
        "chat-77": 8,
    }


def test_finished_requests_are_dropped_once_read_running_ones_stay() -> None:
    counter = RowCounter()
    run(counter, 0, 5, prompt=5, name="a-0a1b2c3d")
    assert counter.read(["a"])["a"].quantized == 4
    counter.finished(["a-0a1b2c3d"])
    assert counter.read(["a"])["a"].quantized == 4
    assert counter.read(["a"]) == {}
    assert len(counter) == 0


def test_memory_is_bounded_when_nobody_reads() -> None:
    counter = RowCounter(capacity=10)
    for i in range(50):
        run(counter, 0, 2, prompt=2, name=f"{i}-0a1b2c3d")
        counter.finished([f"{i}-0a1b2c3d"])
    assert len(counter) == 10
    assert counter.read(["49"])["49"].quantized == 1
    assert counter.read(["0"]) == {}
