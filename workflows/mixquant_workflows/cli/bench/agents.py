"""``mixquant bench agents``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["command"]


DEFAULT_POLICIES = ("exact", "mixquant-nvfp4")


def command(
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Suite, or NAME:N for N of its cases; repeatable. A wrong name lists all."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Policy to compare; repeatable. Default: exact, mixquant-nvfp4."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Cases of each suite. Default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks at the same time.")] = 4,
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="'embedded', 'embedded-base' (no adapter), a folder, or a hub id."),
    ] = "embedded",
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A server's, …/v1, instead of an engine here; --model is its name there."),
    ] = None,
    calls: Annotated[
        Literal["auto", "strict", "required"],
        typer.Option(metavar="KIND", help="auto: free. strict: by their schema. required: one call at least."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Chooses the cases, and is the engine's.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of one turn, in tokens.")] = 256,
    max_model_len: Annotated[int | None, typer.Option(min=16, help="Context window in tokens.")] = None,
    case_seconds: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="A task that takes longer scores 0.")
    ] = 900.0,
    reproducible: Annotated[
        bool, typer.Option("--reproducible/--batch-dependent", help="Whether a row's precision ignores the batch.")
    ] = True,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recorded threads: turn store, Mooncake or AIPerf JSONL.")
    ] = None,
    trace_threads: Annotated[int | None, typer.Option(min=1, help="Only the first N threads of the trace.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of EngineConfig; repeatable.")
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep every turn in this turn store.")] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL of all cases; a stopped run goes on in it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON report; these figures join those of other runs.")
    ] = None,
    rerun_of: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Results of a first run, to see how far both agree.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score agents under several precision policies.

    Same cases, same model; score, tokens and time by phase.

    \b
    Example: mixquant bench agents --suite bundled:20 --policy exact,mixquant-fp8
    """
    from mixquant_agents.cli.arguments import comma_lists, command_line, engine_settings, output_file
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_workflows.runner.session import SERVER, AgentsPlan, run_agents

    line = command_line()
    output_file("--output", output)
    plan = AgentsPlan(
        suites=tuple(comma_lists(suite or ())),
        policies=tuple(comma_lists(policy or ((SERVER,) if base_url else DEFAULT_POLICIES))),
        n=limit,
        concurrency=concurrency,
        model=model,
        base_url=base_url,
        calls=calls,
        seed=seed,
        max_tokens=max_tokens,
        max_model_len=max_model_len,
        case_seconds=case_seconds,
        reproducible=reproducible,
        results=results,
        store=store,
        out=output,
        rerun_of=rerun_of,
        trace=trace,
        trace_threads=trace_threads,
        engine=engine_settings(engine or ()),
        command=line,
    )
    result = asyncio.run(run_agents(plan, progress_console()))
    result = {"command": line, **result}
    if as_json:
        print_json(result)
    else:
        _show(result_console(), result)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _thousands(count: int | None) -> str:
    return "–" if count is None else f"{count / 1000:.1f}k" if count >= 100_000 else str(count)


def _show_cost(out: Any, policies: dict[str, dict[str, Any]]) -> None:
    """What the scores cost, how sure their differences are, and the suite's further figures."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    measures = sorted({name for row in policies.values() for name in row.get("measures") or ()})
    fixed = ("policy", "Δ exact, 95 %", "cached\ntokens", "answer\ntokens", "engine\ns", "s a task\nsolved")
    for column in (*fixed, *(name.replace("_", "\n") for name in measures)):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for policy, row in policies.items():
        low, high = row.get("delta_ci95") or (None, None)
        interval = "" if low is None else f"{low:+.3f} to {high:+.3f}"
        tokens = [_thousands(row[key]) for key in ("cached_tokens", "decode_tokens")]
        cost = row.get("engine_s_per_solved")
        seconds = [_whole(row.get("engine_s")), "–" if cost is None else f"{cost:.2f}"]
        measured = [row.get("measures", {}).get(name) for name in measures]
        measure_cells = ["–" if value is None else f"{value:.3f}" for value in measured]
        table.add_row(policy + "*" * bool(row["emulated"]), interval, *tokens, *seconds, *measure_cells)
    out.print(table)


def _show(out: Any, result: dict[str, Any]) -> None:
    from rich.table import Table

    figures = ("TTFT\np50 ms", "prefill\ns", "decode\ns", "quantized\ntokens", "exact\ntokens")
    columns = ("policy", "score", "95 %", "Δ exact", *figures)
    for name, policies in result["suites"].items():
        counts = sorted({row["n"] for row in policies.values()})
        title = f"{name} on {result['model']} ({result['device'] or 'a server'}), {' or '.join(map(str, counts))} cases"
        table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for column in columns:  # narrow enough for 80 characters
            table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
        for policy, row in policies.items():
            low, high = row.get("ci95") or (None, None)
            scored = ["–", "–"] if low is None else [f"{row['score']:.3f}", f"{low:.2f}–{high:.2f}"]
            delta = "" if row.get("delta") is None else f"{row['delta']:+.3f}"
            seconds = [_whole(row[key]) for key in ("ttft_p50_ms", "prefill_s", "decode_s")]
            tokens = [_thousands(row[key]) for key in ("quantized_tokens", "exact_tokens")]
            table.add_row(policy + "*" * bool(row["emulated"]), *scored, delta, *seconds, *tokens)
        out.print()
        out.print(table)
        _show_cost(out, policies)
        for policy, row in policies.items():
            if row["errors"]:
                out.print(f"{policy}: {row['errors']} of {row['n']} cases failed and score 0; --results FILE keeps why")
    for name, policies in result.get("rerun", {}).items():
        for policy, row in policies.items():
            out.print(
                f"rerun of {name} {policy}: {row['score']:.3f} after {row['first_score']:.3f}, "
                f"{'within' if row['within'] else 'OUTSIDE'} its interval; {row['same_scores']} of {row['n']} equal"
            )
    if any(row["emulated"] for policies in result["suites"].values() for row in policies.values()):
        out.print("* emulated: shows what rounding does to the score; its times say nothing about speed.", style="dim")
