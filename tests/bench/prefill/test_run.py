"""The run around the engines, on stand-ins."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.bench.prefill import roofline, run
from mixquant_agents.bench.prefill.plan import CASES, Group, engine_of
from mixquant_agents.bench.prefill.run import run_prefill
from mixquant_agents.bench.prefill.state import State
from mixquant_agents.errors import ConfigError, EngineStartError


class StandIn:
    """An engine process that answers at once: every measurement takes ``ms``."""

    def __init__(self, name: str, ms: float, asked: list[tuple[str, str]], fail: str = "") -> None:
        self.name, self.ms, self.asked, self.fail = name, ms, asked, fail

    def ask(self, **request: Any) -> dict[str, Any]:
        what = request["do"]
        self.asked.append((self.name, what))
        if what == self.fail:
            raise EngineStartError(f"engine {self.name!r}: out of memory")
        if what == "agents":
            return {"tokens_per_s": 1000 / self.ms, "turns": 3, "ttft_ms": [self.ms] * 3, "itl_ms": [self.ms] * 9}
        return {"device": "a GPU", "weight_bytes": 100, "ms": self.ms if what == "decode" else [self.ms]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What engines were asked, in order; those of the benchmark are stand-ins on a GPU of 140 GiB."""
    return stand_ins(monkeypatch)


def stand_ins(monkeypatch: pytest.MonkeyPatch, fail: str = "") -> list[tuple[str, str]]:
    asked: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def started(
        group: Group,
        model: Path,
        dummy: bool,
        logs: Path,
        say: Callable[[str], None],
        gpus: int,
        memory: float | None,
    ) -> Iterator[dict[str, StandIn]]:
        names = dict.fromkeys(map(engine_of, group.columns))
        yield {name: StandIn(name, 2.0 if name == "mixquant-fp8" else 3.0, asked, fail) for name in names}

    monkeypatch.setattr(run, "engines", started)
    monkeypatch.setattr(run, "_gpu_gib", lambda gpus: 140.0)
    monkeypatch.setattr(run, "by_speed", lambda: [0])
    return asked


PAIR = ["exact", "mixquant-fp8"]


def test_run_measures_in_rounds_and_goes_on(asked: list[tuple[str, str]], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"columns": PAIR, "cases": ["cold_8192", "tpot_1"], "state_path": tmp_path / "s.json"}
    result = run_prefill(rounds=2, command="the command", **settings)
    assert result["command"] == "the command"
    assert result["rounds"] == {"exact, mixquant-fp8": 2}
    assert result["speedup"]["cold_8192"]["median"] == pytest.approx(1.5)
    assert result["tpot_ratio"] == {"1": pytest.approx(2 / 3, abs=1e-4)}
    turns = {case.name: case.turns for case in CASES}
    measured = [what for name, what in asked if name == "exact" and what in ("prefill", "decode")]
    assert measured.count("prefill") == 1 + 2 * turns["cold_8192"]  # once to warm up
    assert measured.count("decode") == 1 + 2 * turns["tpot_1"]
    asked.clear()
    again = run_prefill(rounds=3, **settings)
    assert again["rounds"] == {"exact, mixquant-fp8": 3}
    assert [what for name, what in asked if name == "exact"].count("prefill") == 1 + turns["cold_8192"]
    asked.clear()
    assert run_prefill(rounds=3, **settings)["ms"] == again["ms"]
    assert not asked, "nothing was left to measure"


def test_run_begins_each_round_with_another_engine(asked: list[tuple[str, str]]) -> None:
    run_prefill(columns=PAIR, cases=["mix_8_1536"], rounds=2)
    order = [name for name, what in asked if what == "mix"][2:]  # after the warm-up
    assert order == ["exact", "mixquant-fp8", "mixquant-fp8", "exact"]


def test_run_stops_when_time_is_up(asked: list[tuple[str, str]]) -> None:
    lines: list[str] = []
    result = run_prefill(columns=PAIR, cases=["cold_8192"], rounds=500, minutes=1e-5, say=lines.append)
    assert result["rounds"] == {} or result["rounds"]["exact, mixquant-fp8"] < 500
    assert any("continue with the same --state" in line for line in lines)


def test_run_keeps_its_rounds_when_the_agents_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_ins(monkeypatch, fail="agents")
    path = tmp_path / "s.json"
    result = run_prefill(columns=PAIR, cases=["cold_8192"], rounds=2, agent_seconds=4.0, state_path=path)
    assert result["speedup"]["cold_8192"]["pairs"] == 4
    assert "out of memory" in json.loads(path.read_text())["info"]["agents32_error"]


def test_run_measures_the_agents_alone(asked: list[tuple[str, str]]) -> None:
    result = run_prefill(columns=PAIR, cases=[], agent_seconds=4.0, agent_runs=2)
    assert {what for _, what in asked} == {"status", "pin", "agents"}
    assert result["agents32"]["ttft_p95_ratio"] == pytest.approx(2 / 3, abs=1e-4)


def test_state_of_other_gpus_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    platform = SimpleNamespace(is_cuda=lambda: True, device_count=lambda: 2, get_device_total_memory=lambda: 80 * 2**30)
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    with pytest.raises(ConfigError, match="--gpus 3, and this machine has 2"):
        run_prefill(gpus=3)
    State(tmp_path / "one.json", info={"model": "qwen3-8b"}).save()
    fresh = State.load(tmp_path / "new.json")
    fresh.take(model="qwen3-8b", gpus=2)
    assert fresh.info == {"model": "qwen3-8b", "gpus": 2}
    with pytest.raises(ConfigError, match="model 'qwen3-8b', not 'qwen3-4b'"):
        fresh.take(model="qwen3-4b", gpus=2)
    with pytest.raises(ConfigError, match=r"one\.json holds a run with gpus 1, not 2; give another --state"):
        run_prefill(gpus=2, state_path=tmp_path / "one.json")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="--predict"):
        run_prefill()
    with pytest.raises(ConfigError, match="no column 'int3'"):
        run_prefill(columns=["int3"])
    with pytest.raises(ConfigError, match="no case 'cold_3'"):
        run_prefill(cases=["cold_3"])
    with pytest.raises(ConfigError, match="choose one of h200"):
        roofline.predict("qwen3-8b", "abacus")
    with pytest.raises(ConfigError, match="no model shape"):
        roofline.predict("gpt-1", "h200")
