"""The study as a picture: what each recipe removes against what it costs, and the loss of each block."""

from __future__ import annotations

import pathlib
from typing import Any

from mixquant_agents.errors import MissingDependencyError

__all__ = ["LENGTH", "save"]

LENGTH = "8192"
"""Prompt length that costs are drawn at."""


def save(report: dict[str, Any], path: pathlib.Path) -> None:
    """Draw a study's result into ``path`` (PNG, SVG or PDF, by its ending).

    Args:
        report: the result file's content.
        path: is overwritten.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'mixquant-agents[dashboard]'") from error
    figure = Figure(figsize=(13, 10), layout="constrained")
    rows, cost, layers = figure.subplot_mosaic([["rows", "cost"], ["rows", "layers"]]).values()
    recipes = sorted(report["recipes"].items(), key=lambda item: item[1]["kl"], reverse=True)
    names = [name for name, _ in recipes]
    low, high = ([abs(row["kl"] - row["kl_ci95"][end]) for _, row in recipes] for end in (0, 1))
    rows.barh(names, [row["kl"] for _, row in recipes], xerr=(low, high), color="#4878a8", ecolor="#333333")
    rows.set_xlabel("KL to the exact model (nats a token), 95 % over prompts")
    rows.tick_params(axis="y", labelsize=7)
    rows.margins(y=0.01)
    for name, row in recipes:
        added = row.get("predicted_added_time", {}).get("b200", {}).get(LENGTH)
        if added is not None:
            cost.plot(100 * added, 100 * row["kl_removed"], "o", color="#4878a8")
            cost.annotate(name, (100 * added, 100 * row["kl_removed"]), fontsize=6)
    cost.axvline(3, color="#999999", linestyle="--")
    cost.set_xlabel(f"predicted added time, B200, 8B, {LENGTH} tokens (%)")
    cost.set_ylabel("KL removed (%)")
    cost.set_ylim(bottom=0)
    blocks = sorted((int(number), kl) for number, kl in report["layers"].items())
    layers.bar([number for number, _ in blocks], [kl for _, kl in blocks], color="#a85848")
    layers.set_xlabel("block alone in NVFP4")
    layers.set_ylabel("KL")
    figure.suptitle(f"{report['model']}, {report['prompts']} agent prompts, emulated ({report['device']})", fontsize=10)
    figure.savefig(path, dpi=120)
