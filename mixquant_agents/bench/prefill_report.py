"""The result file of ``mixquant bench prefill`` and its table, from the rounds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mixquant_agents.bench.prefill_stats import per_round, per_turn, speedup, spread

__all__ = ["report", "table"]

Rounds = Sequence[Mapping[str, Mapping[str, Sequence[float]]]]
OURS = "mixquant-fp8"


def report(info: Mapping[str, Any], rounds: Rounds) -> dict[str, Any]:
    """The result: medians, speed-ups over ``exact`` at the same graph sizes (and over the others), ratios.

    ``pairs`` says how many neighbouring measurements of the two engines an interval rests on.
    """
    cases = list(rounds[0]) if rounds else []
    ms: dict[str, dict[str, float]] = {}
    detail: dict[str, dict[str, dict[str, float]]] = {}
    gains: dict[str, dict[str, Any]] = {}
    tpot: dict[str, float] = {}
    for case in cases:
        by_engine = {engine: per_round(rounds, case, engine) for engine in rounds[0][case]}
        ms[case] = {engine: round(statistics.median(values), 3) for engine, values in by_engine.items() if values}
        detail[case] = {engine: spread(values) for engine, values in by_engine.items() if values}
        ours = by_engine.get(OURS)
        if not ours or len(ours) < 2 or not by_engine.get("exact"):
            continue
        if case.startswith("tpot_"):
            tpot[case.removeprefix("tpot_")] = round(1 / speedup(by_engine["exact"], ours)["median"], 4)
        turns = info.get("turns", {}).get(case, 1)
        pair = [per_turn(rounds, case, engine, turns) for engine in ("exact", OURS)]
        gains[case] = {
            **speedup(*pair),
            "pairs": len(pair[0]),
            **{
                f"against_{engine}": speedup(values, ours)
                for engine, values in by_engine.items()
                if engine in ("exact_default", "uniform-fp8") and len(values) == len(ours)
            },
        }
        last = by_engine.get(f"{OURS}-exact-last")
        if last and len(last) == len(ours):
            gains[case]["exact_last"] = speedup(by_engine["exact"], last)
    engines = info.get("engines", {})
    weights = {name: status["weight_bytes"] for name, status in engines.items()}
    result: dict[str, Any] = {key: info.get(key) for key in ("command", "device", "vllm", "torch", "date", "model")}
    result |= {"rounds": len(rounds), "ms": ms, "speedup": gains, "tpot_ratio": tpot, "spread_ms": detail}
    if OURS in weights and "exact" in weights:
        result["weights_ratio"] = round(weights[OURS] / weights["exact"], 4)
    if "agents32" in info:
        result["agents32"] = info["agents32"]["ratios"]
        result["agents32_detail"] = {key: value for key, value in info["agents32"].items() if key != "ratios"}
    result["engines"] = engines
    return result


def table(result: Mapping[str, Any]) -> str:
    """For people: milliseconds per case and engine, and the speed-up over ``exact``."""
    engines = list(dict.fromkeys(engine for row in result["ms"].values() for engine in row))
    lines = [
        "  ".join(["case".ljust(16), *(name.rjust(max(9, len(name))) for name in engines), "speed-up (95 % from)"])
    ]
    for case, row in result["ms"].items():
        cells = [f"{row[name]:.2f}".rjust(max(9, len(name))) for name in engines if name in row]
        gain = result["speedup"].get(case)
        cells.append(f"{gain['median']:.3f} ({gain['low95']:.3f})" if gain else "")
        lines.append("  ".join([case.ljust(16), *cells]))
    return "\n".join(lines)
