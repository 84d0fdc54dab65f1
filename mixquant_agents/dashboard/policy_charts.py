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
    """Time to first token, prefill rate and score over time, a line for each policy, those with most turns. The first
    two where at least two policies ran, the last where threads were scored."""
    largest = sorted(seen.policies, key=lambda row: -row.figures.turns)[:MOST_LINES]
    shown = [row for row in seen.policies if row in largest]
    keys = [(f"{row.policy} (emulated)" if row.emulated else row.policy, f"line-{n}") for n, row in enumerate(shown, 1)]
    times = [
        charts.line_chart(
            "Time to first token by policy, p50",
            labels,
            [(*key, row.ttft_p50) for key, row in zip(keys, shown, strict=True)],
            formatting.duration,
        ),
        charts.line_chart(
            "Prefill tokens/s by policy",
            labels,
            [(*key, row.prefill_tokens_per_second) for key, row in zip(keys, shown, strict=True)],
            formatting.rate,
        ),
    ]
    scores = charts.line_chart(
        "Score by policy, mean",
        labels,
        [(*key, row.score_means) for key, row in zip(keys, shown, strict=True)],
        formatting.score,
        top=1.0 if all(mean is None or mean <= 1 for row in shown for mean in row.score_means) else None,
    )
    return (times if len(seen.policies) > 1 else []) + ([scores] if seen.scores else [])
