"""``mixquant bench turns``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repetitions; their median counts.")] = 15,
    tokens: Annotated[int, typer.Option(min=100, help="Tokens of the streamed answer.")] = 10_000,
    tool_tokens: Annotated[int, typer.Option(min=100, help="Tokens of the longer streamed tool call.")] = 8_000,
    streams: Annotated[int, typer.Option(min=3, help="Concurrent streams of the leak check.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the chat layer's own cost.

    No model runs, the scripted engine gives the tokens. What streams leave behind ends with exit code 1.

    \b
    Example: mixquant bench turns --rounds 5
    """
    import asyncio

    from mixquant_agents.bench.overhead.turns import measure
    from mixquant_agents.cli.output import print_json, progress_console, result_console

    with progress_console().status("starting") as status:
        result = asyncio.run(
            measure(
                rounds=rounds,
                stream_tokens=tokens,
                tool_tokens=tool_tokens,
                streams=streams,
                progress=lambda what: status.update(what),
            )
        )
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        from rich.table import Table

        table = Table()
        for name in ("figure", "here", "target", ""):
            table.add_column(name)
        for figure, value, limit, unit in (
            ("streaming, against langchain_core's fake model", result.stream_cost_ratio, 1.3, "x"),
            ("tool call, twice the tokens cost", result.tool_call_growth, 2.2, "x"),
            (f"requests left by {result.streams} streams", result.leaked_requests, 0, ""),
            (f"tasks left by {result.streams} streams", result.leaked_tasks, 0, ""),
        ):
            here = f"{value:.2f}{unit}" if unit else str(value)
            table.add_row(figure, here, f"≤ {limit}{unit}", "missed" if value > limit else "")
        result_console().print(table)
    if result.leaked_requests or result.leaked_tasks:
        raise typer.Exit(1)
