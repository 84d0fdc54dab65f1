"""32 agents on one engine after another: 8k cached tokens each (7k of them shared), 2k new, 160 written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mixquant_agents.bench.prefill_stats import pooled_ratio, ratio_interval

__all__ = ["ANSWER", "run_agents", "summary"]

ANSWER = 160
BASELINE, OURS = "exact", "mixquant-fp8"
TURNS = 2
LOAD = 0.8
"""Turns arrive at this share of the rate that the exact engine reaches in a closed loop."""

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
Run = dict[str, Any]


def run_agents(
    ask: Ask, seconds: float, runs: int, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
) -> None:
    """A closed loop of two turns each, twice, and ``runs`` at a fixed rate per engine, engines taking turns.

    Both engines meet the same arrivals; each pair of runs has other ones. ``keep`` gets the result after each pair.
    """
    turn = {"do": "agents", "agents": 32, "shared": 7168, "own": 1024, "new": 2048, "answer": ANSWER}
    turn["seconds"] = seconds
    orders = [(BASELINE, OURS), (OURS, BASELINE)]
    closed: dict[str, list[Run]] = {BASELINE: [], OURS: []}
    opened: dict[str, list[Run]] = {BASELINE: [], OURS: []}
    for order in orders:  # it varies little
        for column in order:
            closed[column].append(ask(column, {**turn, "turns_each": TURNS}))
            say(f"agents, closed loop, {column}: {closed[column][-1]['tokens_per_s']:.0f} tokens/s")
    rate = LOAD * statistics.fmean(run["tokens_per_s"] for run in closed[BASELINE]) / ANSWER
    for seed in range(runs):
        for column in orders[(seed + 1) % 2]:
            found = ask(column, {**turn, "rate": rate, "seed": seed})
            opened[column].append(found)
            first, gaps = _p95(found["ttft_ms"]), _p95(found["itl_ms"])
            say(f"agents, {rate:.2f} turns/s, {column}: p95 of TTFT {first:.0f} ms, of ITL {gaps:.1f} ms")
        keep({"closed": _thin(closed), "open": _thin(opened), "rate": rate, "ratios": summary(closed, opened)})


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(np.asarray(values), 95)) if len(values) else float("nan")


def _thin(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """What a result file keeps: percentiles instead of every gap."""

    def percentiles(values: Sequence[float]) -> dict[str, float]:
        if not len(values):
            return {}
        found = np.percentile(np.asarray(values), [50, 95, 99])
        return {name: round(float(value), 2) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}

    return {
        column: [{**run, "ttft_ms": percentiles(run["ttft_ms"]), "itl_ms": percentiles(run["itl_ms"])} for run in each]
        for column, each in runs.items()
    }


def summary(closed: Mapping[str, Sequence[Run]], opened: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Ours over exact: tokens per second, and p95 of all runs' turns together.

    ``…_95`` is the 95 % interval: of the runs' ratios for tokens per second; for p95 see ``pooled_ratio``.
    ``…_pairs_95`` is that of each pair's own p95 ratio, another quantity: a p95 of few turns is nearly their maximum.
    """
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
        result[f"{name}_pairs_95"] = _ends(ratio_interval([_p95(ours) / _p95(exact) for exact, ours in pairs]))
        result["pairs"] = len(pairs)
        result["turns"] = [sum(run["turns"] for run in opened[column]) for column in (BASELINE, OURS)]
    return result


def _ends(found: Mapping[str, float]) -> list[float]:
    return [round(found["low95"], 4), round(found["high95"], 4)]
