"""``mixquant demo``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixquant_agents.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from mixquant_agents.records import TurnRecord

__all__ = ["command"]


def command(
    docs: Annotated[
        Path | None, typer.Option(help="Folder of text files to search and read. Default: notes on this project.")
    ] = None,
    tools: Annotated[
        str, typer.Option(help="What the agent has, with commas: calculator, notes, files, time.")
    ] = "calculator,notes,files,time",
    question: Annotated[list[str] | None, typer.Option(help="Question to ask; may be given several times.")] = None,
    model: Annotated[str, typer.Option(help="Model: 'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[str, typer.Option(help="Precision policy preset.")] = "mixquant-nvfp4",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Watch an agent choose and call tools on a real model in a real vLLM engine, each turn counted and timed."""
    from mixquant_agents import EngineConfig, PrecisionPolicy, VllmEngine
    from mixquant_agents.cli.arguments import comma_list
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_workflows import demo

    PrecisionPolicy.of(policy)  # a wrong name is told before anything is prepared
    kinds = comma_list(tools)
    folder = demo.demo_folder(docs)
    demo_tools = demo.demo_tools(folder, kinds)
    # The built-in questions are about the built-in notes.
    usual = [text for wants, text in demo.QUESTIONS if wants in kinds and (docs is None or wants in _ANYWHERE)]
    questions = question or usual
    if not questions:
        beside = "" if docs is None else " with --docs"
        raise ConfigError(f"there is no built-in question for --tools {tools!r}{beside}; give one with --question")
    notes = progress_console()
    out = notes if as_json else result_console()
    names = ", ".join(tool.name for tool in demo_tools) or "none"
    notes.print(f"tools: {names}; files in {folder}", style="dim", soft_wrap=True)

    async def go() -> demo.DemoResult:
        engine = VllmEngine(EngineConfig(model=model, policy=PrecisionPolicy.of(policy), max_num_seqs=4))
        try:
            return await demo.run_demo(engine, demo_tools, questions, max_tokens=max_tokens, events=_narrate(out))
        finally:
            await engine.aclose()

    result = asyncio.run(go())
    if as_json:
        print_json(result.as_json())
        return
    out.print()
    out.print(turn_table(result.turns))
    out.print(_caveat(result), style="dim")


_ANYWHERE = ("calculator", "time")


def _narrate(out: Console) -> Any:
    from rich.text import Text

    from mixquant_workflows.demo import DemoEvents

    def token(text: str) -> None:
        out.print(text, end="", soft_wrap=True)

    def call(name: str, arguments: dict[str, Any]) -> None:
        inner = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        out.print(Text.assemble(("calls   ", "dim"), f"{name}({inner})"))

    def result(text: str) -> None:
        line, room = " ".join(text.split()), max(20, out.width - len("returns "))
        line = line if len(line) <= room else line[: room - 1] + "…"
        out.print(f"returns {line}", style="dim")

    return DemoEvents(
        question=lambda text: out.print(f"\n\n{text}", style="bold"),
        call=call,
        result=result,
        token=token,
    )


def turn_table(turns: Sequence[TurnRecord]) -> Any:
    """A table with one row per turn: tokens by phase and precision, seconds by phase."""
    from rich.table import Table

    table = Table(
        title="Where each turn's tokens and seconds went", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("turn", no_wrap=True)
    for name in ("cached", "quant.", "exact", "decode", "queue s", "prefill s", "decode s", "TTFT s", "tok/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, turn in enumerate(turns, start=1):
        table.add_row(
            f"{number} {'call' if turn.tool_calls else 'answer'}",
            *(_count(n) for n in (turn.cached_tokens, turn.quantized_tokens, turn.exact_tokens, turn.decode_tokens)),
            *(_seconds(s) for s in (turn.queue_seconds, turn.prefill_seconds, turn.decode_seconds, turn.ttft_seconds)),
            "–" if not turn.itl_mean_seconds else f"{1 / turn.itl_mean_seconds:.1f}",
        )
    return table


def _count(tokens: int | None) -> str:
    return "–" if tokens is None else str(tokens)


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f}"


def _caveat(result: Any) -> str:
    line = "cached + quantized + exact = the prompt's tokens; decode tokens are always exact under this policy."
    if result.policy.startswith("uniform"):
        line = "cached + quantized + exact = the prompt's tokens; this policy quantizes decode too."
    if result.emulated:
        line += " The number format is emulated on this device: this shows function, not speed and not quality."
    return line
