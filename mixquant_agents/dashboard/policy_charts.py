"""Charts that tell policies apart."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mixquant_agents.dashboard import charts, formatting
from mixquant_agents.telemetry.analysis.overview import Overview

__all__ = ["MOST_LINES", "policy_charts"]

MOST_LINES = 6
"""Most policies in a chart: the sheet has a colour for each."""


def policy_charts(seen: Overview, labels: Sequence[str]) -> list[Markup]:
    """Time to first token and prefill rate over time, a line for each policy, those with most turns; none where fewer
    than two policies ran."""
    if len(seen.policies) < 2:
        return []
    largest = sorted(seen.policies, key=lambda row: -row.figures.turns)[:MOST_LINES]
    shown = [row for row in seen.policies if row in largest]
    names = [f"{row.policy} (emulated)" if row.emulated else row.policy for row in shown]
    return [
        charts.line_chart(
            "Time to first token by policy, p50",
            labels,
            [(name, f"line-{n}", row.ttft_p50) for n, (name, row) in enumerate(zip(names, shown, strict=True), 1)],
            formatting.duration,
        ),
        charts.line_chart(
            "Prefill tokens/s by policy",
            labels,
            [
                (name, f"line-{n}", row.prefill_tokens_per_second)
                for n, (name, row) in enumerate(zip(names, shown, strict=True), 1)
            ],
            formatting.rate,
        ),
    ]
