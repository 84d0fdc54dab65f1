"""``mixquant bench replay``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    suite: Annotated[
        str,
        typer.Option(metavar="NAME", help="bfcl_ast, tau2_mock, bundled …; a wrong name lists all."),
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Replay a benchmark's ground truth; no model runs.

    It goes through the tool path and the benchmark's own checker.

    \b
    Example: mixquant bench replay --suite bfcl_ast --limit 20
    """
    from rich.progress import Progress

    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_workflows.runner.registry import suite as find
    from mixquant_workflows.runner.replay import replay

    benchmark = find(suite)
    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task(f"replaying {suite}", total=None)
        result = asyncio.run(
            replay(benchmark, limit=limit, progress=lambda done, total: bar.update(task, completed=done, total=total))
        )
    if as_json:
        print_json(result)
    else:
        out = result_console()
        out.print(f"{suite}: {result['passed']} of {result['total']} ground truths pass")
        for name, reason in {**result["documented_misses"], **result["undocumented_misses"]}.items():
            kind = "upstream" if name in result["documented_misses"] else "UNEXPLAINED"
            out.print(f"  {name} ({kind}): {reason}")
        if result["left_out"]:
            out.print(f"  {len(result['left_out'])} left out: {next(iter(result['left_out'].values()))}")
    if result["undocumented_misses"]:
        raise typer.Exit(1)
