"""``mixquant bench plan``: predicted and measured agents side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command"]


def command(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Model folder, hub id or 'embedded'; or a shape with random weights.")
    ] = "embedded",
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Precision policy; repeatable, and with commas.")
    ] = None,
    workload: Annotated[str, typer.Option(metavar="NAME", help="What the agents do: cpu or gpu.")] = "cpu",
    agents: Annotated[str, typer.Option(metavar="N,…", help="Numbers of agents, with commas.")] = "8,16,32",
    seconds: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Length of each run.")] = 30.0,
    warm_up: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Beginning of each run that is not counted.")
    ] = 5.0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder whose tokenizer a shape borrows.")
    ] = None,
    kv_gib: Annotated[float | None, typer.Option(min=0.01, metavar="GIB", help="KV cache of each engine.")] = None,
    again: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Predict the runs of this result again; nothing is run.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="With --again: of a TTFT outside of the steps, where it was not measured."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how far the simulation of mixquant plan is off.

    The same agents run on real engines.

    \b
    Example: mixquant bench plan --policy mixquant-int8 --agents 8,16
    """
    import asyncio

    from mixquant_agents.bench.plan import WORKLOADS, predicted_again, run_plan
    from mixquant_agents.cli.arguments import comma_lists, command_line, output_file, positive_numbers
    from mixquant_agents.cli.output import print_json, progress_console, result_console, write_json
    from mixquant_agents.errors import ConfigError

    output_file("--output", output)
    if workload not in WORKLOADS:
        raise ConfigError(f"--workload {workload!r}: choose one of {', '.join(WORKLOADS)}")
    numbers = positive_numbers("--agents", agents, "8,16,32")
    if warm_up >= seconds:
        raise ConfigError(f"--warm-up {warm_up:g} leaves nothing of --seconds {seconds:g}")
    if latency is not None and again is None:
        raise ConfigError("--latency belongs to --again; a run measures it")
    if again is not None:
        result = predicted_again(again, latency)
        if output is not None:
            write_json(output, result)
    else:
        result = asyncio.run(
            run_plan(
                model=model,
                policies=comma_lists(policy or ["exact"]),
                workload=workload,
                agents=numbers,
                seconds=seconds,
                warm_up=warm_up,
                tokenizer=tokenizer,
                kv_bytes=None if kv_gib is None else int(kv_gib * 2**30),
                command=command_line(),
                output=output,
                say=progress_console().print,
            )
        )
    if as_json:
        print_json(result)
        return
    for table in _tables(result):
        result_console().print(table)


def _tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Predicted beside measured: a table for each device of a result."""
    from rich.table import Table

    from mixquant_agents.planning.validate import by_device

    for device, device_result in by_device(result).items():
        table = Table("policy", "agents", "figure", "predicted", "measured", "error", title=device or None)
        for name, validated in device_result["policies"].items():
            for run in validated["runs"]:
                for figure, error in run["error"].items():
                    shown = "" if error is None else f"{100 * error:+.1f} %"
                    predicted, measured = run["predicted"][figure], run["measured"][figure]
                    table.add_row(name, str(run["agents"]), figure, str(predicted), str(measured), shown)
        yield table
