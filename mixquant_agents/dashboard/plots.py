"""Plots of a thread or a comparison as PNG and SVG files, for papers and slides (matplotlib)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixquant_agents.dashboard import formatting
from mixquant_agents.dashboard.timeline import Waterfall
from mixquant_agents.errors import MissingDependencyError
from mixquant_agents.telemetry.analysis.overview import Comparison
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_comparison", "plot_thread"]

COLOURS = {
    "queue": "#8d939d", "prefill": "#0f8b8d", "delivery": "#b9bdc4", "decode": "#d9822b", "tool": "#7a5cc0",
    "frame": "#dfdfd8", "unknown": "#a9adb5",
}  # fmt: skip
HEIGHTS = {"tool": 0.4, "node": 0.2, "agent": 0.2}
MOST_PIXELS = 60_000
"""Height of a picture; matplotlib draws fewer than 65,536."""
SIDES = ("#0f8b8d", "#c2410c")


def plot_thread(fall: Waterfall, title: str, stem: Path) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.svg`` of a thread's waterfall; idle times are folded as on the page."""
    figure = _figure(9.0, 0.8 + 0.24 * max(3, len(fall.rows)))
    axes = figure.add_subplot()
    shown: set[str] = set()
    for index, row in enumerate(fall.rows):
        if row.kind == "idle":
            axes.barh(
                index,
                row.bars[0].width,
                left=row.bars[0].left,
                height=0.7,
                color="#ecece6",
                hatch="////",
                edgecolor="#dfdfd8",
            )
            continue
        for bar in row.bars:
            name = bar.phase if bar.phase not in shown else None
            shown.add(bar.phase)
            height, colour = HEIGHTS.get(row.kind, 0.72), COLOURS.get(bar.phase, COLOURS["unknown"])
            axes.barh(
                index,
                max(bar.width, 0.15),
                left=bar.left,
                height=height,
                color=colour,
                label=name,
            )
    labels = [f"{row.label}  {formatting.duration(row.seconds)}" for row in fall.rows]
    axes.set_yticks(range(len(fall.rows)), labels, fontsize=8, parse_math=False)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xticks([])
    axes.set_xlabel(f"{formatting.duration(fall.seconds)} in all" + (", idle times folded" if fall.folded else ""))
    _finish(axes, title)
    axes.legend(loc="lower left", fontsize=8, frameon=False, ncols=len(shown) or 1)
    return _save(figure, stem)


def plot_comparison(seen: Comparison, names: tuple[str, str], stem: Path) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.svg`` of the distributions of both sides by phase."""
    rows = math.ceil(len(SUMMARIZED) / 2)
    figure = _figure(9.0, 2.5 * rows)
    grid = figure.subplots(rows, 2)
    for axes in grid.flat[len(SUMMARIZED) :]:
        axes.set_axis_off()
    for axes, time in zip(grid.flat, SUMMARIZED, strict=False):
        bars = seen.distributions[time.name]
        _finish(axes, time.label)
        axes.set_yticks([])
        if not bars:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            continue
        positions = range(len(bars))
        axes.bar(positions, [a for _, a, _ in bars], width=0.96, color=SIDES[0], alpha=0.55, label=names[0])
        axes.step(positions, [b for *_, b in bars], where="mid", color=SIDES[1], label=names[1])
        ends = (0, len(bars) // 2, len(bars) - 1)
        axes.set_xlabel("logarithmic axis", fontsize=7)
        axes.set_xticks(ends, [formatting.duration(bars[n][0]) for n in ends], fontsize=8)
    for text in grid.flat[0].legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)
    return _save(figure, stem)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'mixquant-agents[dashboard]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _finish(axes: Any, title: str) -> None:
    # parse_math off, here and above: a name may hold dollar signs.
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def _save(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=min(160, MOST_PIXELS / figure.get_figheight()))
    return paths
