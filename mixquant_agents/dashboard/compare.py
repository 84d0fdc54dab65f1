"""The comparison page: two policies, models or runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from markupsafe import Markup

from mixquant_agents.dashboard import charts, formatting
from mixquant_agents.dashboard.query import EVERYTHING, FITTING, WINDOWS, names_in, window_start
from mixquant_agents.dashboard.templates import render
from mixquant_agents.records import TimeField
from mixquant_agents.telemetry.analysis.overview import Comparison, compare
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore

__all__ = ["compare_page", "comparison_charts", "comparison_rows"]


def compare_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """Two policies, models or runs side by side."""
    window = query.get("window") or EVERYTHING
    names = names_in(store)
    values = dict(query)
    if not any(name.startswith(("a.", "b.")) for name in values):  # a useful first view
        others = sorted((name for name in names["policy"] if name != "exact"), key=lambda name: "mixquant" not in name)
        values |= {"a.policy": "exact" if "exact" in names["policy"] else "", "b.policy": others[0] if others else ""}
    sides = [
        TurnFilter.from_mapping({name[2:]: value for name, value in values.items() if name.startswith(f"{side}.")})
        for side in "ab"
    ]
    since = window_start(window)
    seen = compare(store, *(replace(side, since=since) for side in sides))
    labels = [" ".join((side.policy or "all policies", side.model or "", side.run or "")).strip() for side in sides]
    return render(
        "compare",
        seen=seen,
        a=_shown(sides[0]),
        b=_shown(sides[1]),
        names=names,
        window=window,
        windows=[(name, label) for name, label in WINDOWS if name != FITTING],
        default_window=EVERYTHING,
        rows=comparison_rows(seen),
        charts=comparison_charts(seen, (f"A {labels[0]}", f"B {labels[1]}")),
    )


def _shown(turn_filter: TurnFilter) -> dict[str, str | None]:
    return {"policy": turn_filter.policy, "model": turn_filter.model, "run": turn_filter.run}


def comparison_rows(seen: Comparison) -> list[tuple[str, str, str, str]]:
    """``(name, A, B, B / A)`` as text. Times of an emulation get no quotient."""
    rows: list[tuple[str, str, str, str]] = [
        ("Turns", formatting.count(seen.a.turns), formatting.count(seen.b.turns), ""),
        ("Failed, aborted", f"{seen.a.failed}, {seen.a.aborted}", f"{seen.b.failed}, {seen.b.aborted}", ""),
        ("Prefix-cache hits", formatting.share(seen.a.cache_hit_share), formatting.share(seen.b.cache_hit_share), ""),
        ("Rows quantized", formatting.share(seen.a.quantized_share), formatting.share(seen.b.quantized_share), ""),
    ]
    emulated = seen.a.emulated or seen.b.emulated

    def quotient(a: float | None, b: float | None) -> str:
        return formatting.UNKNOWN if emulated or not a or b is None else formatting.ratio(b / a)

    for key, name in (
        ("prefill_tokens_per_second", "Prefill tokens/s"),
        ("decode_tokens_per_second", "Decode tokens/s"),
    ):
        a, b = getattr(seen.a, key), getattr(seen.b, key)
        rows.append((name, formatting.rate(a), formatting.rate(b), quotient(a, b)))
    for time in _measured(seen):
        for index, percent in enumerate(("p50", "p95")):
            a, b = seen.a.percentiles[time.name][index], seen.b.percentiles[time.name][index]
            rows.append((f"{time.label}, {percent}", formatting.duration(a), formatting.duration(b), quotient(a, b)))
    return rows


def comparison_charts(seen: Comparison, names: tuple[str, str]) -> list[Markup]:
    """Distributions by phase."""
    return [
        charts.histogram(time.label, seen.distributions[time.name], names, formatting.duration)
        for time in _measured(seen)
    ]


def _measured(seen: Comparison) -> list[TimeField]:
    """The durations that a turn of either side has: only a pair of engines transfers KV."""
    sides = (seen.a.percentiles, seen.b.percentiles)
    return [time for time in SUMMARIZED if any(value is not None for side in sides for value in side[time.name])]
