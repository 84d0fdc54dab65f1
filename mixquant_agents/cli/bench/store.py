"""``mixquant bench store``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]

_ROWS = (
    ("overview, p95, slowest window", "overview_p95_ms", "ms", 300),
    ("one thread with its tools, p95", "thread_p95_ms", "ms", 100),
    ("turns recorded a second, most", "turns_per_s", "", None),
    ("turns dropped at 10,000 a second", "dropped", "", 0),
    ("recording a turn, caller's side", "write_us_per_turn", "µs", 50),
    ("store, metrics and spans, scripted engine", "overhead_us_scripted", "µs", 60),
    ("the same, of a turn on the CPU engine", "overhead_percent_engine", "%", 1),
)


def command(
    turns: Annotated[int, typer.Option(min=1_000, help="Synthetic turns in the store that is read.")] = 1_000_000,
    store: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read this filled store instead of making one.", exists=True, dir_okay=False),
    ] = None,
    engine: Annotated[bool, typer.Option("--engine/--no-engine", help="Also measure on a real CPU engine.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how fast the turn store is, and what recording costs.

    The turns are made up.

    \b
    Example: mixquant bench store --turns 100000 --no-engine
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from mixquant_agents.bench.overhead.store import bench_store
    from mixquant_agents.cli.output import print_json, progress_console, result_console

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=progress_console(), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        result = bench_store(
            turns=turns,
            store=store,
            engine=engine,
            progress=lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
        )
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    table = Table()
    for name in ("figure", "here", "target"):
        table.add_column(name)
    for name, key, unit, target in _ROWS:
        value = result[key]
        text = "not run" if value is None else f"{value:,} {unit}".strip()
        table.add_row(name, text, "" if target is None else f"≤ {target} {unit}".strip())
    result_console().print(table)
