"""``mixquant export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    output: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")],
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="Turn store. Default: your own.")] = None,
    form: Annotated[
        Literal["mooncake", "aiperf", "perfetto"],
        typer.Option("--format", help="For replay (Mooncake, AIPerf), or a timeline for Perfetto."),
    ] = "mooncake",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the newest N threads.")] = None,
    content: Annotated[bool, typer.Option("--content", help="With what was said, where it was recorded.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Export threads for replay elsewhere, or as a timeline.

    Lengths, shared beginnings and gaps travel; what was said only with --content.

    \b
    Example: mixquant export --format aiperf --output threads.jsonl
    """
    from mixquant_agents import TurnStore
    from mixquant_agents.cli.arguments import output_file
    from mixquant_agents.cli.output import print_json, result_console, write_whole
    from mixquant_agents.telemetry import perfetto_trace
    from mixquant_workflows.runner.export import export_trace

    output_file("--output", output)
    with TurnStore(store) as turns:
        path = turns.path
        if form == "perfetto":
            names = [summary.thread_id for summary in turns.threads(limit=limit or 1_000)]
            trace = perfetto_trace(turns, names, content=content)
            write_whole(output, json.dumps(trace, ensure_ascii=False))
            slices = sum(event.get("cat") == "turn" for event in trace["traceEvents"])
            result = {"threads": len(names), "turns": slices, "file": str(output)}
    if form != "perfetto":
        result = export_trace(path, output, form, limit=limit, content=content)
    if as_json:
        print_json(result)
    else:
        result_console().print(f"{result['turns']} turns of {result['threads']} threads in {output}")
