"""``mixquant plan``: how many engines and GPUs so many agents need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command"]


def command(
    agents: Annotated[str, typer.Option(metavar="N,…", help="Concurrent agents, with commas.")] = "100",
    model: Annotated[str, typer.Option(metavar="NAME", help="Model whose tables are used.")] = "Qwen/Qwen3-8B",
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="GPU by aiconfigurator's name: h100_sxm, h200_sxm, b200_sxm, …")
    ] = "h100_sxm",
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Precision policy; repeatable. Default: those of --steps, or exact and FP8."),
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Use the step times that `mixquant bench plan` measured into this file."),
    ] = None,
    workload: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with fields of the workload.")
    ] = None,
    turns_per_minute: Annotated[
        float | None, typer.Option(min=0.01, metavar="N", help="Upper limit of turns per agent.")
    ] = None,
    ttft_ms: Annotated[
        float, typer.Option(min=1, metavar="MS", help="Objective: p95 of the time to first token.")
    ] = 2000.0,
    itl_ms: Annotated[
        float, typer.Option(min=0.1, metavar="MS", help="Objective: p95 of the time between tokens.")
    ] = 100.0,
    max_model_len: Annotated[
        int | None, typer.Option(min=1024, metavar="N", help="Context at which conversations are summarised.")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1024, metavar="N", help="KV cache of one engine. Default: what fits the GPU.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of one engine, tensor-parallel.")] = 1,
    routing: Annotated[str, typer.Option(metavar="NAME", help="session (keeps an agent on its engine) or random.")] = (
        "session"
    ),
    spare: Annotated[
        float, typer.Option(min=0, metavar="SHARE", help="Spare engines, as a share: 0.1 adds 10 %.")
    ] = 0.0,
    seconds: Annotated[
        float, typer.Option(min=10, max=86_400, metavar="SECONDS", help="Simulated time of each run.")
    ] = 600.0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first plan's run as a trace that AIPerf replays.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the result to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Estimate how many engines and GPUs your agents need.

    Simulates agent sessions; the plan meets the latency objectives.

    \b
    Example: mixquant plan --agents 100,10000 --policy exact,mixquant-fp8
    """
    from mixquant_agents.cli.arguments import comma_lists, command_line, output_file, positive_numbers
    from mixquant_agents.cli.output import print_json, progress_console, result_console, write_json
    from mixquant_agents.errors import ConfigError
    from mixquant_agents.planning.report import Question, answer

    output_file("--output", output)
    output_file("--trace", trace)
    numbers = positive_numbers("--agents", agents, "100,10000")
    if routing not in ("session", "random"):
        raise ConfigError(f"--routing {routing!r}: choose session or random")
    question = Question(
        agents=tuple(numbers),
        model=model,
        gpu=gpu,
        policies=tuple(comma_lists(policy)) if policy else None,
        steps=steps,
        workload=workload,
        turns_per_minute=turns_per_minute,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        max_context=max_model_len,
        kv_tokens=kv_tokens,
        gpus_per_engine=gpus,
        routing=routing,  # type: ignore[arg-type]  # checked above
        spare=spare,
        seconds=seconds,
    )
    result: dict[str, Any] = {
        "command": command_line(),
        **answer(question, trace=trace, say=progress_console().print),
    }
    if output is not None:
        write_json(output, result)
    if as_json:
        print_json(result)
        return
    out = result_console()
    out.print(_table(result["plans"]))
    for line in result["assumptions"]:
        out.print(line)


def _table(plans: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each number of agents and policy; 80 columns hold it."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("\nagents", justify="right", no_wrap=True)
    table.add_column("\npolicy", overflow="fold")
    for heading in ("\nengines", "\nGPUs", "agents/\nengine", "KV,\nGiB", "TTFT, ms\np50 / p95", "ITL, ms\np50 / p95",
                    "tok/s/\nengine", "\ncached"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for row in plans:
        expected = row["expected"]
        enough = row["engines"] is not None
        table.add_row(
            f"{row['agents']:,}",
            row["policy"],
            f"{row['engines']:,}" if enough else "none do",
            f"{row['gpus']:,}" if enough else "–",
            str(row["agents_per_engine"]),
            "–" if row["kv_gib"] is None else f"{row['kv_gib']:,.0f}",
            _pair(expected["ttft_p50_ms"], expected["ttft_p95_ms"], ",.0f"),
            _pair(expected["itl_p50_ms"], expected["itl_p95_ms"], ".1f"),
            "–" if expected["tokens_per_s"] is None else f"{expected['tokens_per_s']:,.0f}",
            "–" if expected["cached_share"] is None else f"{100 * expected['cached_share']:.0f} %",
        )
    return table


def _pair(median: float | None, tail: float | None, form: str) -> str:
    return "–" if median is None or tail is None else f"{median:{form}} / {tail:{form}}"
