"""``mixquant report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    thread: Annotated[str | None, typer.Option(help="Report this thread; the newest one by default.")] = None,
    compare: Annotated[
        str | None, typer.Option(help="Report two policies side by side instead: A,B (for example exact,mixquant-fp8).")
    ] = None,
    runs: Annotated[str | None, typer.Option(help="Report two runs side by side instead: their ids, A,B.")] = None,
    model: Annotated[str | None, typer.Option(help="Only turns of this model (for --compare, --runs).")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only turns from this instant on, ISO 8601 (for --compare, --runs).")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="The turn store; the default store otherwise.")] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("mixquant-report.html"),
    plots: Annotated[Path | None, typer.Option(help="Also write plots as PNG and SVG into this folder.")] = None,
    content: Annotated[bool, typer.Option("--content", help="Include messages, where they were recorded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the files written.")] = False,
) -> None:
    """Write a thread or a comparison as one self-contained HTML file, and plots."""
    from mixquant_agents.cli.output import print_json, progress_console
    from mixquant_agents.dashboard.report import write_report

    written = write_report(
        store, out, thread=thread, policies=compare, runs=runs, model=model, since=since, plots=plots, content=content
    )
    if as_json:
        print_json(written)
    else:
        progress_console().print("wrote " + ", ".join(written["files"]))
