"""The store's speed on made-up turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixquant_agents.bench.overhead.store import fill, read_figures, synthetic_turns, write_figures
from mixquant_agents.telemetry import StoreRecorder


def test_synthetic_turns_are_repeatable_and_whole() -> None:
    first, second = (list(synthetic_turns(40, seed=3, days=1.0)) for _ in range(2))
    assert len(first) == 40
    assert [turn.prompt_tokens for turn, *_ in first] == [turn.prompt_tokens for turn, *_ in second]
    for turn, before, tokens, content in first:
        assert turn.model == "synthetic-demo"
        assert len(tokens) in (0, turn.prompt_tokens)
        assert len(before) in (1, 2)
        assert content is None


@pytest.mark.slow
def test_store_figures_count_what_was_written(tmp_path: Path) -> None:
    figures = write_figures(tmp_path, rate=300, seconds=0.5)
    assert figures["offered_turns"] == figures["written_turns"] == 150
    assert figures["dropped"] == 0
    assert figures["turns_per_s"] > 0
    recorder = StoreRecorder(tmp_path / "filled.sqlite")
    recorder.check()
    fill(recorder, 120)
    recorder.close()
    figures = read_figures(tmp_path / "filled.sqlite", repeats=2)
    assert figures["turns"] == 120
    assert set(figures["overview_p95_ms_by_window"]) > {"all", "30d", "1h"}
    assert figures["store_bytes"] > 0
