"""What the program about drafts reports, on stand-ins for its engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.bench.gpu import writing
from mixquant_agents.bench.shapes import write_model

TIME = {"exact": 5.0, "twin": 5.0, "nested": 4.0}
"""Milliseconds of a step of each engine; a draft takes half of one, and every draft is right."""


class StandIn:
    """An engine that says what its steps would take."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def ask(self, **request: Any) -> dict[str, Any]:
        if request["do"] == "write":
            drafts = request.get("drafts") or 0
            assert (self.name == "exact") == ("drafts" not in request)
            return {"ms": TIME[self.name] * (1 + drafts / 2) / (1 + drafts), "tokens_per_step": 1.0 + drafts}
        if request["do"] == "turn":
            assert request["drafts"] == (self.name != "exact")
            return {"ms": 100 * TIME[self.name], "ttft_ms": 50.0}
        return {"device": "none"}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, StandIn]:
    """Those of the run."""
    made: dict[str, StandIn] = {}

    def start(folder: Path, logs: Path, drafts: Sequence[int], drafting: Sequence[str]) -> dict[str, StandIn]:
        made.update({name: StandIn(name) for name in (*drafting, "exact")})
        return made

    monkeypatch.setattr(writing, "start", start)
    return made


def test_columns_of_both_storages_are_held_against_exact(engines: dict[str, StandIn], tmp_path: Path) -> None:
    writing.main(str(tmp_path / "out.json"), "0", "0,3", "separate,nested")
    result = json.loads((tmp_path / "out.json").read_text())
    ratios = {column: case["ratio"]["median"] for column, case in result["cases"]["8"].items() if column != "exact_ms"}
    assert ratios == {"0": 1.0, "3": 0.625, "nested/0": 0.8, "nested/3": 0.5}
    assert result["turn"]["ratio"]["median"] == 1.0
    assert result["turn"]["nested_ratio"]["median"] == 0.8
    assert set(result["split"]) == {f"{case}/{column}" for case in writing.CASES for column in ("3", "nested/3")}
    assert set(result["kernels"]) == {"1/0", "1/3", "32/3", "1/nested/0", "1/nested/3", "32/nested/3"}
    assert all(engine.closed for engine in engines.values())


def test_one_storage_has_its_engine_alone(engines: dict[str, StandIn], tmp_path: Path) -> None:
    writing.main(str(tmp_path / "out.json"), "0", "0,3", "nested")
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(engines) == {"nested", "exact"}
    assert set(result["cases"]["1"]) == {"exact_ms", "nested/0", "nested/3"}
    assert result["turn"]["ratio"]["median"] == 0.8


def test_engines_differ_by_their_storage_alone(tmp_path: Path) -> None:
    folder = write_model("qwen3-8b", tmp_path)
    separate, nested = (writing.arguments(name, folder, (0, 3)) for name in ("twin", "nested"))
    policies = [each.pop("hf_overrides")["quantization_config"]["policy"] for each in (separate, nested)]
    assert [policy.pop("storage") for policy in policies] == ["separate", "nested"]
    assert policies[0] == policies[1]
    assert separate | {"additional_config": None} == nested | {"additional_config": None}
    assert "speculative_config" not in writing.arguments("exact", folder, (0, 3))
