"""``mixquant bench prefill``: phase-aware against exact and uniform engines on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixquant_agents.errors import ConfigError

__all__ = ["command"]


def command(
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="Model shape (qwen3-8b, qwen3-30b-a3b, …) or model folder."),
    ] = "qwen3-8b",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share each engine, tensor-parallel.")] = 1,
    memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="GiB of the GPU that the engine may use; for columns of one engine."),
    ] = None,
    columns: Annotated[str, typer.Option(metavar="NAMES", help="Engines to compare, with commas; empty for all.")] = "",
    cases: Annotated[
        str, typer.Option(metavar="NAMES", help="Cases to run, with commas; empty for all, 'none' for none.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds; engines alternate within each.")] = 5,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="MINUTES", help="Time limit for the rounds; starts are not counted."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State file; an existing one is continued.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result here.")] = None,
    agents: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Of each run with 32 agents; 0 leaves them out.")
    ] = 0.0,
    agent_runs: Annotated[
        int, typer.Option(min=1, help="Pairs of runs with 32 agents, counting those in --state.")
    ] = 6,
    predict: Annotated[str, typer.Option(metavar="GPU", help="Predict for this GPU instead of measuring.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure reading and writing on your GPU, or predict them.

    Cold and warm prefill, decode and 32 agents; the engines take turns.

    \b
    Example: mixquant bench prefill --predict h100
    """
    from mixquant_agents.cli.arguments import comma_list, command_line, output_file
    from mixquant_agents.cli.output import print_json, write_json

    output_file("--output", output)
    if predict:
        if columns or cases or state or agents or minutes or gpus > 1:
            raise ConfigError(
                "--predict measures nothing, and knows one GPU: leave out --columns, --cases, --state, --agents, "
                "--minutes, --gpus"
            )
        from mixquant_agents.bench.prefill.predict import predict as predicted

        result = predicted(model, predict)
        table = result["table"]
    else:
        from mixquant_agents.bench.prefill.report import table as table_of
        from mixquant_agents.bench.prefill.run import run_prefill

        result = run_prefill(
            say=lambda text: typer.echo(text, err=True),
            model=model,
            gpus=gpus,
            memory_gib=memory,
            columns=comma_list(columns) or None,
            cases=[] if cases == "none" else comma_list(cases) or None,
            rounds=rounds,
            minutes=minutes,
            state_path=state,
            agent_seconds=agents,
            agent_runs=agent_runs,
            command=command_line(),
        )
        table = table_of(result)
    if output is not None:
        write_json(output, result)
    if as_json:
        print_json(result)
    else:
        typer.echo(table)
