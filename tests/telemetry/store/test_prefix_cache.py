"""Where a prompt diverged from the one before, from salted hashes alone, and in words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_help import make_turn

from mixquant_agents.dashboard.views import thread_page
from mixquant_agents.telemetry import RunLink, StoreRecorder, TurnContent
from mixquant_agents.telemetry.analysis.prompt_diff import diverging_text
from mixquant_agents.telemetry.store.prefix_cache import (
    BLOCK_TOKENS,
    BlockHasher,
    PrefixSide,
    block_hashes,
    explain_prefix,
    pack_hashes,
    shared_blocks,
    unpack_hashes,
)
from mixquant_agents.telemetry.store.reader import TurnStore

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=200)


@given(TOKENS, TOKENS, TOKENS)
def test_shared_blocks_are_the_common_beginning(prefix: list[int], one: list[int], other: list[int]) -> None:
    a, b = prefix + one, prefix + other
    same = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert shared_blocks(block_hashes(a, b"salt"), block_hashes(b, b"salt")) == same // BLOCK_TOKENS


@given(st.lists(TOKENS, max_size=6), TOKENS)
def test_remembered_prompts_hash_the_same(tails: list[list[int]], prefix: list[int]) -> None:
    hasher = BlockHasher(b"salt", threads=2)
    for n, tail in enumerate(tails):
        assert hasher.hashes(f"t{n % 3}", prefix + tail) == block_hashes(prefix + tail, b"salt")
        assert hasher.hashes(None, tail) == block_hashes(tail, b"salt")


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_hashes_survive_packing(hashes: list[int]) -> None:
    assert list(unpack_hashes(pack_hashes(hashes))) == hashes


def test_salts_keep_stores_apart() -> None:
    tokens = list(range(64))
    assert not set(block_hashes(tokens, b"one")) & set(block_hashes(tokens, b"two"))
    assert len(block_hashes(tokens[:63], b"one")) == 3


def side(tokens: int, cached: int | None, differs_at: int | None = None, policy: str = "exact") -> PrefixSide:
    ids = list(range(tokens))
    if differs_at is not None:
        ids[differs_at] = 999_999
    return PrefixSide(
        hashes=block_hashes(ids, b"s"),
        prompt_tokens=tokens,
        cached_tokens=cached,
        salted_with=("model", "vllm", policy),
    )


@pytest.mark.parametrize(
    ("turn", "before", "verdict", "words"),
    [
        (side(1600, 800), side(800, 0), "reused", "first 800 tokens with an earlier one"),
        (side(1600, 720), side(800, 0), "reused", "720 of them, all but a part of its last block"),
        (side(1600, 832), side(800, 0), "reused", "gave all of them, 832 tokens in all"),
        (side(1600, 96, differs_at=100), side(800, 0), "diverged", "up to token 96 and differs in block 6"),
        (side(1600, 0, differs_at=400), side(800, 0), "diverged", "400 tokens were missing from the cache too"),
        (side(1600, 0), side(800, 0), "lost", "800 of them were not in the cache"),
        (side(1600, 0, policy="mixquant"), side(800, 0), "separate", "never share cache blocks"),
        (side(1600, None), side(800, 0), "unknown", "did not report"),
    ],
)
def test_prefix_finding_says_why(turn: PrefixSide, before: PrefixSide, verdict: str, words: str) -> None:
    finding = explain_prefix(turn, before)
    assert finding.verdict == verdict
    assert words in finding.reason


def test_prefix_finding_through_the_store(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=True)
    first = list(range(480))
    changed = [*first[:100], 7, *first[101:], *range(50)]
    texts = ("system: today is Monday. Be brief.", "system: today is Tuesday. Be brief.")
    for index, (tokens, text) in enumerate(zip((first, changed), texts, strict=True)):
        turn = make_turn(index, turn_id=f"t{index}", turn_index=index, cached_tokens=96 * index, prompt_tokens=530,
                         prefill_tokens=530 - 96 * index, quantized_tokens=None, exact_tokens=None)  # fmt: skip
        recorder.record(turn, prompt_token_ids=tokens, content=TurnContent(prompt_text=text))
    recorder.record(make_turn(2, turn_id="t2"), block_hashes=[1, 2, 3])
    recorder.record(make_turn(3, turn_id="t3"))
    recorder.close()
    store = TurnStore(tmp_path / "turns.sqlite")
    turns = store.thread("thread")
    assert store.prefix(turns[0]) is None, "the first turn has no predecessor"
    finding = store.prefix(turns[1])
    assert finding is not None
    assert (finding.verdict, finding.first_block, finding.shared_tokens) == ("diverged", 6, 96)
    assert store.prefix(turns[2]) is not None
    assert store.prefix(turns[3]) is None, "no hashes were recorded"
    shown = diverging_text(store.content(turns[0]), store.content(turns[1]))
    assert shown is not None
    assert (shown.shared[-9:], shown.before[:6], shown.after[:7]) == ("today is ", "Monday", "Tuesday")


@pytest.mark.parametrize(
    ("turn", "earlier", "verdict"),
    [
        (side(1600, 0, differs_at=0), side(800, 0), "new"),
        (side(1600, 400, differs_at=400), side(800, 0), "reused"),
        (side(1600, 0, differs_at=400), side(800, 0), "lost"),
        (side(1600, 800), side(800, 0), "reused"),
    ],
)
def test_first_turn_of_an_agent_has_not_diverged(turn: PrefixSide, earlier: PrefixSide, verdict: str) -> None:
    assert explain_prefix(turn, earlier, first_of_its_agent=True).verdict == verdict


def agent_turn(recorder: StoreRecorder, number: int, tokens: list[int], agent: str | None, **values: Any) -> None:
    """A turn of a sub-agent (or of the lead, ``None``), whose cache holds what it should."""
    recorder.link(RunLink(f"run-{number}", "root", "model", f"node-{number}", agent_id=agent))
    recorder.record(
        make_turn(number, turn_id=f"t{number}", run_id=f"run-{number}", prompt_tokens=len(tokens),
                  **{"cached_tokens": 0, "prefill_tokens": len(tokens), "quantized_tokens": None,
                     "exact_tokens": None, **values}),
        prompt_token_ids=tokens,
    )  # fmt: skip


def test_turn_is_compared_with_the_longest_common_beginning(tmp_path: Path) -> None:
    lead, worker = list(range(1_000)), list(range(5_000, 6_000))
    with closing(StoreRecorder(tmp_path / "turns.sqlite")) as recorder:
        agent_turn(recorder, 0, lead[:480], None)
        agent_turn(recorder, 1, worker[:320], "sub-1")
        agent_turn(recorder, 2, [*worker[:160], *range(9_000, 9_160)], "sub-2", cached_tokens=160, prefill_tokens=160)
        agent_turn(recorder, 3, worker[:480], "sub-1", cached_tokens=320, prefill_tokens=160)
        agent_turn(recorder, 4, lead[:800], None, cached_tokens=480, prefill_tokens=320)
        agent_turn(recorder, 5, [7, *lead[1:]], None)
    with TurnStore(tmp_path / "turns.sqlite") as store:
        findings = {turn.turn_id: store.prefix(turn) for turn in store.thread("thread")}
        turns = {turn.turn_id: turn for turn in store.thread("thread")}
        assert store.predecessor(turns["t4"]) == turns["t0"]
        assert store.predecessor(turns["t2"]) is None
    assert findings.pop("t0") is None
    verdicts = {name: (one.verdict, one.earlier_turn_id, one.shared_tokens) for name, one in findings.items() if one}
    assert verdicts == {
        "t1": ("new", "t0", 0),
        "t2": ("reused", "t1", 160),
        "t3": ("reused", "t1", 320),
        "t4": ("reused", "t0", 480),
        "t5": ("diverged", "t4", 0),
    }


def test_turn_is_compared_with_other_threads_too(tmp_path: Path) -> None:
    tokens = list(range(640))
    with closing(StoreRecorder(tmp_path / "turns.sqlite")) as recorder:
        agent_turn(recorder, 0, tokens, None, thread_id="yesterday's")
        agent_turn(recorder, 1, tokens[:480], None, thread_id="today's", cached_tokens=480, prefill_tokens=0)
    with TurnStore(tmp_path / "turns.sqlite") as store:
        turn = store.turn("t1")
        assert turn is not None
        finding = store.prefix(turn)
        assert finding is not None
        assert (finding.verdict, finding.earlier_turn_id) == ("reused", "t0")
        assert "thread yesterday&#39;s" in thread_page(store, {"id": "today's", "turn": "t1"})


def test_text_that_only_grows_does_not_diverge() -> None:
    old = TurnContent(messages=[{"role": "user", "content": "a"}])
    new = TurnContent(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert diverging_text(old, new) is None
    assert diverging_text(None, new) is None
    assert diverging_text(new, old) is not None
