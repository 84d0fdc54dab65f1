"""32 agents on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixquant_agents.bench.prefill.agents import run_agents
from mixquant_agents.bench.prefill.report import report
from mixquant_agents.bench.prefill.state import State
from mixquant_agents.errors import ConfigError


def test_agents_meet_equal_work_and_arrivals(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, object]]] = []
    kept: list[int] = []

    def ask(column: str, request: dict[str, object]) -> dict[str, object]:
        asked.append((column, request))
        slow = 2.0 if column == "exact" else 1.0
        return {"tokens_per_s": 1600 / slow, "turns": 3, "ttft_ms": [10 * slow] * 3, "itl_ms": [slow] * 9}

    state = State(tmp_path / "state.json")

    def keep() -> None:
        state.save()
        kept.append(state.agents_of(4.0).pairs)

    run_agents(ask, state.agents_of(4.0), 3, lambda text: None, keep)
    assert kept == [0, 0, 0, 0, 1, 2, 3], "what was measured survives an end in the middle"
    ratios = report(state.info, state.runs, state.agents)["agents32"]
    assert (ratios["tokens_per_s_ratio"], ratios["ttft_p95_ratio"], ratios["itl_p95_ratio"]) == (2.0, 0.5, 0.5)
    assert ratios["ttft_p95_ratio_95"] == ratios["ttft_p95_ratio_pairs_95"] == [0.5, 0.5]
    assert (ratios["pairs"], ratios["turns"]) == (3, [9, 9])
    opened = [(column, request) for column, request in asked if "rate" in request]
    assert {request["rate"] for _, request in opened} == {0.8 * 800 / 160}
    assert [request["seed"] for _, request in opened] == [0, 0, 1, 1, 2, 2]
    assert all(request["turns_each"] == 2 for _, request in asked if "rate" not in request)

    again = State.load(state.path)
    assert again == state
    asked.clear()
    run_agents(ask, again.agents_of(4.0), 5, lambda text: None, again.save)
    assert [request.get("seed") for _, request in asked] == [3, 3, 4, 4], "other arrivals, and no closed loop anew"
    assert [column for column, _ in asked] == ["exact", "mixquant-fp8", "mixquant-fp8", "exact"]
    assert report({}, [], State.load(state.path).agents)["agents32"]["turns"] == [15, 15]
    with pytest.raises(ConfigError, match=r"runs of 4 s, not 9; give another --state"):
        again.agents_of(9.0)
