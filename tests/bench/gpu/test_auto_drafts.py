"""Which cases are said to be slower than exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.bench.gpu import auto_drafts
from mixquant_agents.bench.shapes import write_model


class StandIn:
    def __init__(self, name: str, ms: float) -> None:
        self.name, self.ms = name, ms

    def ask(self, **request: Any) -> dict[str, Any]:
        slower = 1.1 if self.name == "poor" and request.get("batch") == 48 else 1.0
        return {"ms": self.ms * slower, "tokens_per_step": 1.0, "device": "none"}

    def close(self) -> None:
        pass


def test_case_whose_lower_end_is_below_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engines = {"exact": StandIn("exact", 5.0), "auto": StandIn("auto", 4.0), "poor": StandIn("poor", 5.0)}
    monkeypatch.setattr(auto_drafts, "start", lambda folder, logs: engines)
    auto_drafts.main(str(tmp_path / "out.json"), "0")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["slow"] == ["48x128 poor"]
    assert result["cases"]["8x6000"]["auto"]["over_exact"]["median"] == pytest.approx(1.25)
    assert result["rounds"] == 4


def test_engines_differ_by_how_often_drafts_are_right(tmp_path: Path) -> None:
    model = write_model("qwen3-tiny", tmp_path)
    made = [auto_drafts.twin_arguments(model, (0, 3), draft="auto", acceptance=rate) for rate in (0.95, 0.4)]
    rates = [each["speculative_config"].pop("synthetic_acceptance_rates") for each in made]
    assert rates[1] == pytest.approx([0.4, 0.16, 0.064])
    assert made[0] == made[1]
