"""32 agents on one engine after another: 8k cached tokens each (7k of them shared), 2k new, 160 written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill.stats import pooled_ratio, ratio_interval

__all__ = ["ANSWER", "AgentRuns", "run_agents", "summary"]

ANSWER = 160
BASELINE, OURS = "exact", "mixquant-fp8"
TURNS = 2
CLOSED = 4
"""Pairs of the closed loop: it varies little, but of two alone Student's interval is useless."""
LOAD = 0.8
"""Turns arrive at this share of the rate that the exact engine reaches in a closed loop."""

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
Sample = dict[str, Any]


@dataclass
class AgentRuns:
    """What the agents have shown: per engine its runs in order, with every turn's times in milliseconds.

    Attributes:
        seconds: length of each run at a fixed rate.
        closed: runs of a closed loop.
        opened: runs at a fixed rate; the n-th of both engines met the same arrivals.
    """

    seconds: float
    closed: dict[str, list[Sample]] = field(default_factory=lambda: {BASELINE: [], OURS: []})
    opened: dict[str, list[Sample]] = field(default_factory=lambda: {BASELINE: [], OURS: []})

    @property
    def rate(self) -> float:
        """Turns per second of the runs at a fixed rate."""
        return LOAD * statistics.fmean(run["tokens_per_s"] for run in self.closed[BASELINE]) / ANSWER

    @property
    def pairs(self) -> int:
        """How many pairs at a fixed rate are there."""
        return min(map(len, self.opened.values()))

    def result(self) -> dict[str, Any]:
        """What a result file keeps: percentiles instead of every gap."""
        return {"closed": _thin(self.closed), "open": _thin(self.opened), "rate": self.rate}


def run_agents(ask: Ask, state: AgentRuns, runs: int, say: Callable[[str], None], keep: Callable[[], None]) -> None:
    """A closed loop of two turns each, four times, and ``runs`` at a fixed rate per engine, engines taking turns.

    Both engines meet the same arrivals; each pair of runs has other ones. What ``state`` already holds is not run
    again, so a later call adds pairs of new arrivals; ``keep`` is called after each pair.
    """
    turn = {"do": "agents", "agents": 32, "shared": 7168, "own": 1024, "new": 2048, "answer": ANSWER}
    turn["seconds"] = state.seconds
    orders = [(BASELINE, OURS), (OURS, BASELINE)]
    for number in range(len(state.closed[OURS]), CLOSED):
        pair = {}
        for column in orders[number % 2]:
            pair[column] = ask(column, {**turn, "turns_each": TURNS})
            say(f"agents, closed loop, {column}: {pair[column]['tokens_per_s']:.0f} tokens/s")
        _add(state.closed, pair)
        keep()
    for seed in range(state.pairs, runs):
        pair = {}
        for column in orders[(seed + 1) % 2]:
            pair[column] = ask(column, {**turn, "rate": state.rate, "seed": seed})
            first, gaps = _p95(pair[column]["ttft_ms"]), _p95(pair[column]["itl_ms"])
            say(f"agents, {state.rate:.2f} turns/s, {column}: p95 of TTFT {first:.0f} ms, of ITL {gaps:.1f} ms")
        _add(state.opened, pair)
        keep()


def _add(runs: dict[str, list[Sample]], pair: Mapping[str, Sample]) -> None:
    for column, run in pair.items():
        times = {key: [round(value, 2) for value in run[key]] for key in ("ttft_ms", "itl_ms")}
        runs[column].append({**run, **times})


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(np.asarray(values), 95)) if len(values) else float("nan")


def _thin(runs: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    def percentiles(values: Sequence[float]) -> dict[str, float]:
        if not len(values):
            return {}
        cuts = np.percentile(np.asarray(values), [50, 95, 99])
        return {name: round(float(value), 2) for name, value in zip(("p50", "p95", "p99"), cuts, strict=True)}

    return {
        column: [{**run, "ttft_ms": percentiles(run["ttft_ms"]), "itl_ms": percentiles(run["itl_ms"])} for run in each]
        for column, each in runs.items()
    }


def summary(agent_runs: AgentRuns) -> dict[str, Any]:
    """Ours over exact: tokens per second, and p95 of all runs' turns together.

    ``…_95`` is the 95 % interval: of the runs' ratios for tokens per second; for p95 see ``pooled_ratio``.
    ``…_pairs_95`` is that of each pair's own p95 ratio, another quantity: a p95 of few turns is nearly their maximum.
    """
    closed, opened = agent_runs.closed, agent_runs.opened
    tokens = [o["tokens_per_s"] / e["tokens_per_s"] for e, o in zip(closed[BASELINE], closed[OURS], strict=True)]
    result: dict[str, Any] = {"tokens_per_s_ratio": round(statistics.fmean(tokens), 4)}
    if len(tokens) > 1:
        result["tokens_per_s_ratio_95"] = _ends(ratio_interval(tokens))
    for name, key in (("ttft_p95_ratio", "ttft_ms"), ("itl_p95_ratio", "itl_ms")):
        pairs = [(e[key], o[key]) for e, o in zip(opened[BASELINE], opened[OURS], strict=True) if e[key] and o[key]]
        if len(pairs) < 2:
            continue
        pooled = pooled_ratio(pairs)
        result[name] = round(pooled["ratio"], 4)
        result[f"{name}_95"] = _ends(pooled)
        result[f"{name}_pairs_95"] = _ends(
            ratio_interval([_p95(candidate) / _p95(exact) for exact, candidate in pairs])
        )
        result["pairs"] = len(pairs)
        result["turns"] = [sum(run["turns"] for run in opened[column]) for column in (BASELINE, OURS)]
    return result


def _ends(interval: Mapping[str, float]) -> list[float]:
    return [round(interval["low95"], 4), round(interval["high95"], 4)]
