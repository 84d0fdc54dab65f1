"""``mixquant acceptance``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option(metavar="NAME", help="'embedded', a folder, or a hub id.")] = "embedded",
    formats: Annotated[
        list[str] | None, typer.Option("--format", metavar="NAME", help="Format that drafts; repeatable. Default: all.")
    ] = None,
    drafts: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Longest draft, in tokens.")] = 4,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Agent conversations to answer.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer, in tokens.")] = 48,
    output: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="Also write the result, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how often drafts by quantized weights are accepted.

    By format and number of drafts, on agent text; on a GPU also how much faster PrecisionPolicy(draft="twin") would
    write.

    \b
    Example: mixquant acceptance --format fp8 --drafts 3
    """
    from rich.table import Table

    from mixquant_agents.bench.acceptance import known_formats, measure
    from mixquant_agents.cli.arguments import comma_lists, command_line, output_file
    from mixquant_agents.cli.output import print_json, progress_bar, result_console, write_json

    output_file("--output", output)
    number_formats = known_formats(comma_lists(formats or ()))
    with progress_bar() as progress:
        report = measure(model, number_formats, drafts=drafts, prompts=limit, tokens=max_tokens, progress=progress)
    figures = {"command": command_line(), **report.model_dump(mode="json")}
    if output is not None:
        write_json(output, figures)
    if as_json:
        print_json(figures)
        return
    table = Table(title=f"{report.model}, {report.positions} answer tokens, drafts that are right")
    for name in ("format", *(f"{k} drafts" for k in range(1, drafts + 1)), "tokens a cycle", "predicted gain"):
        table.add_column(name)
    for name, acceptance in report.formats.items():
        best = max(acceptance.gain, key=acceptance.gain.__getitem__) if acceptance.gain else drafts
        gain = f"{acceptance.gain[best]:.2f}x with {best}" if acceptance.gain else "– (emulated here)"
        table.add_row(name, *(f"{acceptance.acceptance[k]:.3f}" for k in range(1, drafts + 1)),
                      f"{acceptance.tokens_per_cycle[best]:.2f} with {best}", gain)  # fmt: skip
    result_console().print(table)
