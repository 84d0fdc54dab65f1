"""Policies add up to all turns; seconds saved are measured, of like sizes, None where they cannot be said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from telemetry_help import at, make_turn, stored

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.analysis.policies import PolicyFigures
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import to_microseconds


def run(
    policy: str, tokens: int, per_token: float, turns: int = 6, start: float = 0.0, **more: Any
) -> list[TurnRecord]:
    """Turns of one size, one a minute from ``start`` on; seconds per token differ by a few per cent."""
    made = []
    for n in range(turns):
        seconds = tokens * per_token * (1 + 0.01 * (n % 3))
        made.append(
            make_turn(
                start + 60 * n, policy=policy, prompt_tokens=tokens, cached_tokens=0, prefill_tokens=tokens,
                quantized_tokens=0, exact_tokens=tokens, prefill_seconds=seconds, delivery_seconds=0.0,
                ttft_seconds=0.002 + seconds, total_seconds=99.0, **more,
            )
        )  # fmt: skip
    return made


def row(store: TurnStore, name: str, *, emulated: bool = False, **chosen: Any) -> PolicyFigures:
    rows = overview(store, TurnFilter(**chosen)).policies
    (match,) = [entry for entry in rows if (entry.policy, entry.emulated) == (name, emulated)]
    return match


def test_saving_is_what_exact_would_have_taken_for_the_same_turns(path: Path) -> None:
    fast, short = run("mixquant-fp8", 1000, 1e-4), run("mixquant-fp8", 100, 5e-4)
    store = stored(path, *fast, *short, *run("exact", 1010, 1.5e-4), *run("exact", 90, 4e-4), *run("exact", 8000, 9.0))
    match = row(store, "mixquant-fp8")
    long_seconds, short_seconds = (sum(turn.prefill_seconds or 0.0 for turn in part) for part in (fast, short))
    assert match.no_saving is None
    assert match.saved is not None
    assert match.saved.turns == 12
    assert match.saved.baseline_seconds == pytest.approx(1.5 * long_seconds + 0.8 * short_seconds, rel=1e-6)
    assert match.saved.seconds == pytest.approx(0.5 * long_seconds - 0.2 * short_seconds, rel=1e-6)
    assert row(store, "mixquant-fp8", policy="mixquant-fp8").saved == match.saved, (
        "the baseline counts behind the filter"
    )
    baseline = row(store, "exact")
    assert (baseline.saved, baseline.no_saving) == (None, None)


def test_slower_policy_saves_less_than_nothing(path: Path) -> None:
    match = row(stored(path, *run("slow", 1000, 2e-4), *run("exact", 1000, 1e-4)), "slow")
    assert match.saved is not None
    assert match.saved.seconds == pytest.approx(-match.saved.baseline_seconds, rel=1e-6)


def test_emulated_turns_save_nothing_and_stand_apart(path: Path) -> None:
    store = stored(
        path, *run("exact", 1000, 2e-4), *run("mixquant-nvfp4", 1000, 1e-5, emulated=True, device="cpu"),
        *run("mixquant-nvfp4", 1000, 1e-4), *run("exact", 1000, 2e-4, emulated=True, device="cpu"),
    )  # fmt: skip
    emulated, measured = row(store, "mixquant-nvfp4", emulated=True), row(store, "mixquant-nvfp4")
    assert emulated.saved is None
    assert "emulated" in (emulated.no_saving or "")
    assert (emulated.figures.turns, measured.figures.turns) == (6, 6)
    assert measured.saved is not None
    assert measured.saved.turns == 6, "only the measured ones"
    assert measured.saved.baseline_seconds == pytest.approx(2 * 0.6 * 1.01, rel=1e-6)


@pytest.mark.parametrize(
    ("baseline", "policy", "words"),
    [
        ({"tokens": 100}, {}, "no size class"),
        ({"turns": 4}, {}, "no size class"),
        ({"device": "another"}, {}, "no size class"),
        ({"model": "another"}, {}, "no size class"),
        ({"emulated": True}, {}, "no size class"),
        ({"error": "failed"}, {}, "no size class"),
        ({"device": None}, {"device": None}, "on which device"),
    ],
)
def test_saving_is_not_said_without_like_exact_turns(
    path: Path, baseline: dict[str, Any], policy: dict[str, Any], words: str
) -> None:
    exact = {"tokens": 1000, "per_token": 2e-4, **baseline}
    match = row(stored(path, *run("exact", **exact), *run("fast", 1000, 1e-4, **policy)), "fast")
    assert match.saved is None
    assert words in (match.no_saving or "")


def test_saving_of_rollups_is_that_of_the_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(path, *run("exact", 1000, 2e-4, 9), *run("fast", 900, 1e-4, 7), *run("fast", 900, 1e-4, error="x"))
    slow = row(store, "fast")
    monkeypatch.setattr("mixquant_agents.telemetry.analysis.collect.EXACT_TURNS", 0)
    fast = row(store, "fast")
    assert (slow.figures.exact, fast.figures.exact) == (True, False)
    assert slow.saved is not None
    assert fast.saved is not None
    assert fast.saved.turns == slow.saved.turns == 7
    assert fast.saved.seconds == pytest.approx(slow.saved.seconds)
    assert fast.figures.turns == slow.figures.turns == 13


def test_saving_is_unknown_where_an_earlier_version_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(path, *run("exact", 1000, 2e-4), *run("fast", 1000, 1e-4))
    from mixquant_agents.telemetry.store.aggregate import Aggregate

    load = Aggregate.load.__func__  # type: ignore[attr-defined] # a class method

    def without_seconds(cls: type[Aggregate], *columns: Any) -> Aggregate:
        loaded: Aggregate = load(cls, *columns)
        for name in [name for name in loaded.sums if name.startswith("timed_")]:
            del loaded.sums[name]
        return loaded

    monkeypatch.setattr("mixquant_agents.telemetry.analysis.collect.EXACT_TURNS", 0)
    monkeypatch.setattr(Aggregate, "load", classmethod(without_seconds))
    seen = overview(store)
    assert [entry.saved for entry in seen.policies] == [None, None]
    assert seen.speed_ups, "the speed-up needs no seconds"


def test_policies_add_up_to_the_whole_and_say_what_their_filter_says(path: Path) -> None:
    rng = random.Random(7)  # noqa: S311 # test data
    made = [
        make_turn(
            60 * rng.randint(0, 100), policy=rng.choice(["exact", "a", "b"]), ttft_seconds=rng.uniform(0.05, 9.0),
            error="x" if rng.random() < 0.1 else None, decode_tokens=rng.randint(1, 90), total_seconds=99.0,
        )
        for _ in range(300)
    ]  # fmt: skip
    store = stored(path, *made, *(make_turn(300, policy="b", emulated=True) for _ in range(5)))
    now = to_microseconds(at(6_100)) / 1e6
    seen = overview(store, TurnFilter(since=at(0)), now=now)
    assert [(entry.policy, entry.emulated) for entry in seen.policies] == [
        ("exact", False), ("a", False), ("b", False), ("b", True),
    ]  # fmt: skip
    assert sum(entry.figures.turns for entry in seen.policies) == seen.figures.turns == 305
    for name in ("prompt", "cached", "decode"):
        assert sum(entry.figures.tokens[name] or 0 for entry in seen.policies) == seen.figures.tokens[name]
    for entry in seen.policies[:2]:
        alone = overview(store, TurnFilter(policy=entry.policy, since=at(0)), now=now)
        assert entry.figures == alone.figures
        known = {point.at: point.ttft_p50 for point in alone.points}
        assert entry.ttft_p50 == [known.get(point.at) for point in seen.points]
    for n, point in enumerate(seen.points):
        assert any(entry.ttft_p50[n] is not None for entry in seen.policies) == (point.turns > 0)
