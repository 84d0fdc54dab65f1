"""The result file of ``mixquant bench prefill`` and its table, from the runs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mixquant_agents.bench.prefill.agents import AgentRuns, summary
from mixquant_agents.bench.prefill.plan import COLUMNS, NESTED, OFF, OURS
from mixquant_agents.bench.prefill.state import Run
from mixquant_agents.bench.prefill.stats import per_round, per_turn, speedup, spread

__all__ = ["report", "table"]


class _Runs:
    """Several groups of engines, each compared within itself."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if run.rounds]
        self.cases = list(dict.fromkeys(case for run in self.runs for case in run.rounds[0]))

    def having(self, case: str, *columns: str) -> Run | None:
        """The first run in which all ``columns`` have the case in every round."""
        for run in self.runs:
            if all(round_.get(case, {}).get(column) for column in columns for round_ in run.rounds):
                return run
        return None

    def columns(self, case: str) -> list[str]:
        """Who ran a case, in the order of the table."""
        columns = {column for run in self.runs for round_ in run.rounds for column in round_.get(case, {})}
        return sorted(columns, key=lambda column: COLUMNS.index(column) if column in COLUMNS else len(COLUMNS))

    def rounds_of(self, case: str, *columns: str) -> list[list[float]] | None:
        """Per column the median of each round, of the first run that has them all; ``None`` for under two rounds."""
        run = self.having(case, *columns)
        if run is None or len(run.rounds) < 2:
            return None
        return [per_round(run.rounds, case, column) for column in columns]

    def gains(self, case: str) -> dict[str, Any] | None:
        """How many times faster ours is than ``exact`` (or than itself with every step exact, where the two engines do
        not fit together), and than the others."""
        base = "exact" if self.having(case, "exact", OURS) else OFF
        run = self.having(case, base, OURS)
        turns = run.turns.get(case, 1) if run else 1
        pair = [per_turn(run.rounds, case, column, turns) for column in (base, OURS)] if run else [[], []]
        nested = self._nested(case)
        if len(pair[0]) < 2:
            return nested
        gains: dict[str, Any] = {**speedup(*pair), "pairs": len(pair[0])}
        if base != "exact":
            gains |= {"base": base, "alone": self._alone(case)}
        for other in ("exact_default", "uniform-fp8"):
            rounds = self.rounds_of(case, other, OURS)
            if rounds:
                gains[f"against_{other}"] = speedup(*rounds)
        last = self.rounds_of(case, "exact", f"{OURS}-exact-last")
        if last:
            gains["exact_last"] = speedup(*last)
        if nested is not None:
            gains["nested"] = nested
        return gains

    def _nested(self, case: str) -> dict[str, Any] | None:
        """How many times faster ours with nested weights is than ``exact``, and than with separate ones."""
        run = self.having(case, "exact", NESTED)
        if run is None:
            return None
        turns = run.turns.get(case, 1)
        exact, nested = (per_turn(run.rounds, case, column, turns) for column in ("exact", NESTED))
        if len(exact) < 2:
            return None
        gains: dict[str, Any] = {"column": NESTED, **speedup(exact, nested), "pairs": len(exact)}
        if self.having(case, OURS, NESTED) is run:
            gains["against_separate"] = speedup(per_turn(run.rounds, case, OURS, turns), nested)
        return gains

    def _alone(self, case: str) -> dict[str, float]:
        """How many times faster ours is than engines that ran alone before or after it: the ratio of the medians."""
        own_run = self.having(case, OURS)
        speed_ups = {}
        for other in ("exact_default", "exact", "uniform-fp8"):
            run = self.having(case, other)
            if run is not None and own_run is not None and run is not own_run:
                medians = [statistics.median(per_round(r.rounds, case, c)) for r, c in ((run, other), (own_run, OURS))]
                speed_ups[other] = round(medians[0] / medians[1], 4)
        return speed_ups


def report(info: Mapping[str, Any], runs: Sequence[Run], agents: AgentRuns | None = None) -> dict[str, Any]:
    """The result: medians, speed-ups over ``exact`` at the same graph sizes (and over the others), ratios.

    ``pairs`` says how many neighbouring measurements of the two engines an interval rests on.
    """
    all_runs = _Runs(runs)
    ms: dict[str, dict[str, float]] = {}
    detail: dict[str, dict[str, dict[str, float]]] = {}
    gains: dict[str, dict[str, Any]] = {}
    tpot: dict[str, float] = {}
    for case in all_runs.cases:
        by_column = {}
        for column in all_runs.columns(case):
            run = all_runs.having(case, column)
            if run is not None:
                by_column[column] = per_round(run.rounds, case, column)
        ms[case] = {column: round(statistics.median(values), 3) for column, values in by_column.items()}
        detail[case] = {column: spread(values) for column, values in by_column.items()}
        gain = all_runs.gains(case)
        if gain is None:
            continue
        gains[case] = gain
        if case.startswith("tpot_"):
            tpot[case.removeprefix("tpot_")] = round(1 / gain["median"], 4)
    engines = info.get("engines", {})
    weights = {name: status["weight_bytes"] for name, status in engines.items()}
    names = ("command", "device", "gpus", "memory_gib", "vllm", "torch", "date", "model")
    result: dict[str, Any] = {key: info.get(key) for key in names}
    result |= {"rounds": {", ".join(run.columns): len(run.rounds) for run in all_runs.runs}}
    result |= {"ms": ms, "speedup": gains, "tpot_ratio": tpot, "spread_ms": detail}
    if OURS in weights and "exact" in weights:
        result["weights_ratio"] = round(weights[OURS] / weights["exact"], 4)
    if NESTED in weights and "exact" in weights:
        result["nested"] = _nested(engines, gains)
    if agents is not None and agents.closed[OURS]:
        result["agents32"] = summary(agents)
        result["agents32_detail"] = agents.result()
    result["engines"] = engines
    return result


def _nested(engines: Mapping[str, Any], gains: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What nested weights cost and save, of the engines that were measured."""
    own = {case: gain.get("nested", gain) for case, gain in gains.items()}
    own = {case: gain for case, gain in own.items() if gain.get("column") == NESTED}
    status = engines[NESTED]
    separate = engines.get(OURS, {}).get("start_seconds")
    return {
        "weights_ratio": round(status["weight_bytes"] / engines["exact"]["weight_bytes"], 4),
        "tpot_ratio": {
            case.removeprefix("tpot_"): round(1 / gain["median"], 4)
            for case, gain in own.items()
            if case.startswith("tpot_")
        },
        "speedup": {
            case: {"ratio": gain["median"], "low95": gain["low95"]}
            for case, gain in own.items()
            if not case.startswith("tpot_")
        },
        "start_over_separate": None if not separate else round(status["start_seconds"] / separate, 3),
        "rebuilt_weights": status.get("plugin", {}).get("gpu", {}).get("rebuilt_weights"),
    }


def table(result: Mapping[str, Any]) -> str:
    """For people: milliseconds per case and engine, and the speed-up over ``exact``."""
    measured = {engine for row in result["ms"].values() for engine in row}
    engines = [name for name in (*COLUMNS, NESTED, OFF) if name in measured]
    lines = [
        "  ".join(["case".ljust(16), *(name.rjust(max(9, len(name))) for name in engines), "speed-up (95 % from)"])
    ]
    for case, row in result["ms"].items():
        cells = [(f"{row[name]:.2f}" if name in row else "").rjust(max(9, len(name))) for name in engines]
        gain = result["speedup"].get(case)
        cells.append(f"{gain['median']:.3f} ({gain['low95']:.3f})" if gain else "")
        lines.append("  ".join([case.ljust(16), *cells]))
    return "\n".join(lines)
