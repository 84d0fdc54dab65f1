"""What recording adds to a turn: figures of both measurements, on the scripted engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixquant_agents import ScriptedEngine
from mixquant_agents.bench.overhead import recording
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.slow


def test_scripted_overhead_counts_every_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, few in {"WARM_TURNS": 2, "WALL_BLOCKS": 8, "BLOCK_TURNS": 5}.items():
        monkeypatch.setattr(recording, name, few)
    figures = recording.overhead_on_scripted(tmp_path, pairs=6)
    assert figures["overhead_scripted_turns"] == 6
    assert figures["overhead_scripted_dropped"] == 0
    assert figures["turn_us_scripted"] > 0
    assert figures["background_us_scripted"] > 0
    for name in ("overhead_us_scripted", "overhead_us_scripted_wall"):
        low, high = figures[f"{name}_ci95"]
        assert low <= figures[name] <= high
    with TurnStore(tmp_path / "overhead.sqlite") as store, store.reading() as connection:
        (count,) = connection.execute("SELECT count(*) FROM turns").fetchone()
    assert count == 2 * (6 + 2) + 8 * 5, "both recorded sides, and the recorded one by the clock"


async def test_engine_overhead_is_a_share_of_its_turn(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda _: recording.ANSWER)
    figures = await recording.overhead_on_engine(engine, tmp_path, pairs=4)
    assert figures["overhead_engine_pairs"] == 4
    assert figures["overhead_engine_dropped"] == 0
    assert figures["overhead_percent_engine"] >= 0
    low, high = figures["overhead_percent_engine_wall_ci95"]
    assert low <= figures["overhead_percent_engine_wall"] <= high
