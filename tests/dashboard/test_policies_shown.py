"""The overview's comparison by policy: its rows, its rule, its charts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dashboard_help import turn_read_in

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.policy_charts import MOST_LINES, policy_charts
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.store.reader import TurnStore


def recorded(path: Path, *groups: tuple[str, float, dict[str, Any]]) -> TurnStore:
    recorder = StoreRecorder(path)
    for policy, seconds, more in groups:
        for _ in range(6):
            recorder.record(turn_read_in(seconds, policy=policy, **more))
    recorder.close()
    assert recorder.dropped == 0
    return TurnStore(path)


def test_overview_says_what_reading_saved(tmp_path: Path) -> None:
    store = recorded(tmp_path / "t.sqlite", ("exact", 0.3, {}), ("fast", 0.1, {}), ("slow", 0.6, {}))
    page = str(views.overview_page(store, {})).replace("\u202f", " ")
    assert "reading saved <b>1.20 s</b> of 1.80 s" in page
    assert "reading took <b>1.80 s</b> more than 1.80 s" in page
    assert "Measured turns only, never emulated ones" in page
    assert "a size class counts from 5 turns of each policy on" in page
    assert page.index('id="by-policy"') < page.index("All turns over time")
    assert [
        f'<th scope="row" class="policy"><span class="cut" title="{name}">{name}<' in page
        for name in ("exact", "fast", "slow")
    ] == [True] * 3


def test_overview_counts_what_was_read_ahead_and_held(tmp_path: Path) -> None:
    assert "Read ahead or held" not in views.overview_page(recorded(tmp_path / "none.sqlite", ("exact", 0.3, {})), {})
    counts = {"warmed_tokens": 500, "kept_tokens": 200, "evicted_tokens": 30}
    page = str(views.overview_page(recorded(tmp_path / "t.sqlite", ("exact", 0.3, counts)), {})).replace("\u202f", " ")
    assert "Read ahead or held" in page
    assert "3 000 tokens read ahead, 1 200 held for tools, 180 held in vain" in page


def test_overview_claims_no_saving_of_an_emulation(tmp_path: Path) -> None:
    store = recorded(tmp_path / "t.sqlite", ("exact", 0.3, {}), ("fast", 0.1, {"emulated": True}))
    page = str(views.overview_page(store, {}))
    assert "reading saved" not in page
    assert "emulated: these times say nothing about speed" in page


@pytest.mark.parametrize(("policies", "lines"), [(1, 0), (2, 2), (9, MOST_LINES)])
def test_policy_charts_hold_a_line_for_each_policy(tmp_path: Path, policies: int, lines: int) -> None:
    store = recorded(tmp_path / "t.sqlite", *((f"p{n}", 0.1, {}) for n in range(policies)))
    seen = overview(store)
    made = policy_charts(seen, ["now"] * len(seen.points))
    assert len(made) == (2 if lines else 0)
    for chart in made:
        assert chart.count('class="key line-') == lines
