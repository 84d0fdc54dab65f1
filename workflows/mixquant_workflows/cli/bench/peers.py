"""``mixquant bench peers``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option(metavar="NAME", help="'embedded' or a folder.")] = "embedded",
    turns: Annotated[int, typer.Option(min=1, help="Turns of each agent.")] = 4,
    words: Annotated[int, typer.Option(min=1, help="Words of each user message.")] = 120,
    answer_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 24,
    agents: Annotated[int, typer.Option(min=1, help="Agents at the same time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each side.")] = 6,
    max_model_len: Annotated[int, typer.Option(min=256, help="Context window in tokens.")] = 4096,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON report; these figures join it.")] = None,
    llama_packages: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With llama-cpp-python and langchain-community in it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare with ChatOpenAI on vllm serve and with ChatLlamaCpp.

    Same machine, model, texts and lengths. The folder of --llama-packages is made by pip install --target.

    \b
    Example: mixquant bench peers --rounds 8
    """
    from mixquant_agents.cli.arguments import command_line, output_file
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_workflows.runner.peers.compare import PeersPlan, compare_peers

    line = command_line()
    output_file("--output", output)
    plan = PeersPlan(
        model=model,
        turns=turns,
        words=words,
        answer_tokens=answer_tokens,
        agents=agents,
        rounds=rounds,
        max_model_len=max_model_len,
        out=output,
        llama_packages=llama_packages,
        command=line,
    )
    result = asyncio.run(compare_peers(plan, progress_console()))
    result = {"command": line, **result}
    if as_json:
        print_json(result)
    else:
        _show(result_console(), result)


def _show(out: Any, result: dict[str, Any]) -> None:
    from rich.table import Table

    ours, peers = result["ours"], result["peers"]
    for name, peer in peers.items():
        table = Table(title=f"{result['model']}: ours and {name}")
        for column in ("", "ours", "peer", "ratio", "95 %"):
            table.add_column(column, justify="right" if column else "left")
        for label, key, ratio, interval in (
            ("overhead of a turn, p50, ms", "overhead_p50_ms", "overhead_ratio_1", "overhead_ratio_ci95"),
            ("time of a turn, p50, s", "wall_p50_s", "wall_ratio_1", "wall_ratio_ci95"),
        ):
            low, high = peer[interval]
            table.add_row(label, f"{ours[key]:.2f}", f"{peer[key]:.2f}", f"{peer[ratio]:.2f}", f"{low:.2f}–{high:.2f}")
        low, high = peer["tokens_ratio_ci95"]
        rates = [f"{sum(side['tokens_per_second']) / len(side['tokens_per_second']):.1f}" for side in (ours, peer)]
        label = f"tokens/s, {result['agents']} agents"
        table.add_row(label, *rates, f"{peer['tokens_ratio_16']:.2f}", f"{low:.2f}–{high:.2f}")
        for feature, sides in result["features"].items():
            table.add_row(feature, *("yes" if sides[side] else "no" for side in ("ours", name)), "", "")
        out.print(table)
        if peer["remark"]:
            out.print(peer["remark"], style="dim")
    for name, reason in result["not_run"].items():
        out.print(f"not run: {name}: {reason}", style="dim")
