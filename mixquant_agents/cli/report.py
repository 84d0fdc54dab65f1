"""``mixquant report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    thread: Annotated[str | None, typer.Option(metavar="ID", help="Thread to report. Default: the newest.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="A,B", help="Two policies side by side, for example exact,mixquant-fp8.")
    ] = None,
    runs: Annotated[str | None, typer.Option(metavar="A,B", help="Two runs side by side: their ids.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only turns of this model (for --compare, --runs).")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only turns since then, ISO 8601 (for --compare, --runs).")
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="Turn store. Default: your own.")] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write.")] = Path(
        "mixquant-report.html"
    ),
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also write plots here, as PNG and SVG.")] = None,
    content: Annotated[bool, typer.Option("--content", help="Include messages, where they were recorded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the files written.")] = False,
) -> None:
    """Write a thread or a comparison as one HTML file.

    \b
    Example: mixquant report --compare exact,mixquant-nvfp4 --output compare.html
    """
    from mixquant_agents.cli.output import print_json, progress_console
    from mixquant_agents.dashboard.report import write_report

    written = write_report(
        store,
        output,
        thread=thread,
        policies=compare,
        runs=runs,
        model=model,
        since=since,
        plots=plots,
        content=content,
    )
    if as_json:
        print_json(written)
    else:
        progress_console().print("wrote " + ", ".join(written["files"]))
