"""``mixquant demo``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixquant_agents.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from mixquant_agents import PrecisionPolicy
    from mixquant_agents.records import TurnRecord
    from mixquant_workflows.demo import DemoEvents, DemoResult

__all__ = ["command"]


def command(
    docs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Texts to search and read. Default: notes on this project.")
    ] = None,
    tools: Annotated[
        str, typer.Option(metavar="NAMES", help="The agent's tools: calculator, notes, files, time.")
    ] = "calculator,notes,files,time",
    question: Annotated[list[str] | None, typer.Option(help="Question to ask; repeatable.")] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Precision policy; two or more are compared. Default: mixquant-nvfp4."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of EngineConfig; repeatable.")
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="Turn store. Default: your own.")] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Keep turns and tools for the dashboard.")
    ] = True,
    content: Annotated[
        bool | None,
        typer.Option("--content/--no-content", help="Record messages, too. Default: only with the built-in questions."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Watch an agent choose and call tools on a real model.

    The engine is vLLM in this process; each turn is counted, timed and recorded.

    \b
    Example: mixquant demo --policy exact --policy mixquant-nvfp4
    """
    from mixquant_agents import EngineConfig, PrecisionPolicy
    from mixquant_agents.cli.arguments import comma_list, comma_lists, engine_settings
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_agents.cli.recording import next_step, recorded_turns
    from mixquant_workflows import demo
    from mixquant_workflows.engines import engine_groups

    policies = comma_lists(policy or ["mixquant-nvfp4"])
    presets = {name: PrecisionPolicy.of(name) for name in policies}  # a wrong name is told before the work
    settings = {"max_num_seqs": 4, **engine_settings(engine or ())}
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
    private = docs is not None or bool(question)

    async def go(recorder: Any) -> list[DemoResult]:
        results = []
        groups = engine_groups(presets, lambda preset: EngineConfig(model=model, policy=preset, **settings))
        async with contextlib.aclosing(groups):
            async for group in groups:
                for name in group.policies:
                    await group.enter(name)
                    result = await demo.run_demo(
                        group.engine,
                        demo_tools,
                        questions,
                        max_tokens=max_tokens,
                        events=_narrate(out),
                        recorder=recorder,
                    )
                    results.append(result)
                    if not as_json:
                        out.print("\n")
                        out.print(turn_table(result.turns))
        return results

    with recorded_turns(store, notes, record=record, content=not private if content is None else content) as recorder:
        results = asyncio.run(go(recorder))
    if as_json:
        print_json(results[0].as_json() if len(results) == 1 else {"runs": [result.as_json() for result in results]})
        return
    for result in results:
        if result.policy in presets and (line := reading_line(result, presets[result.policy])):
            out.print(line)
    out.print(_caveat(results), style="dim")
    if len(results) > 1:
        out.print()
        out.print(comparison_table(questions, results))
    next_step(notes, recorder, store)


_ANYWHERE = ("calculator", "time")


def _narrate(out: Console) -> DemoEvents:
    from rich.text import Text

    from mixquant_agents.cli.output import StreamedText, precision_line
    from mixquant_workflows.demo import DemoEvents

    answer = StreamedText(out)

    def question(text: str) -> None:
        nonlocal answer
        answer.end()
        answer = StreamedText(out)
        out.print(f"\n\n{text}", style="bold")

    def call(name: str, arguments: dict[str, Any]) -> None:
        inner = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        out.print(Text.assemble(("calls   ", "dim"), f"{name}({inner})"))

    def result(text: str) -> None:
        line, room = " ".join(text.split()), max(20, out.width - len("returns "))
        line = line if len(line) <= room else line[: room - 1] + "…"
        out.print(f"returns {line}", style="dim")

    return DemoEvents(
        started=lambda info: out.print(f"\n{info.model}, {precision_line(info)}", soft_wrap=True),
        question=question,
        call=call,
        result=result,
        token=lambda text: answer.feed(text),
        turn=lambda turn: answer.end(),
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


def reading_line(result: DemoResult, policy: PrecisionPolicy) -> str | None:
    """How much of what was read ran in low precision, and what the policy keeps exact; ``None`` where that is not
    known, or the policy names no format."""
    read, quantized = (_sum(result.turns, key) for key in ("prefill_tokens", "quantized_tokens"))
    if read is None or quantized is None or policy.prefill_format.value in ("auto", "exact"):
        return None
    exact = []
    if policy.exact_static_prefix:
        exact.append("the tools and the system message (read once, then cached)")
    if policy.exact_first_tokens:
        exact.append(f"the first {policy.exact_first_tokens} tokens of a prompt")
    if policy.exact_last_tokens > 1:
        exact.append(f"its last {policy.exact_last_tokens}")
    line = f"{result.policy} read {read} tokens, {quantized} of them in {policy.prefill_format.value.upper()}."
    if exact:
        line += f" Exact by design: {', '.join(exact)}. Long tool results and documents are what it quantizes."
    return line


def comparison_table(questions: Sequence[str], results: Sequence[DemoResult]) -> Any:
    """Policies side by side: what all turns read and wrote, in how long, and each question's answer."""
    from rich.table import Table

    table = Table(title="The same questions under each policy", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="dim")
    for result in results:
        table.add_column(result.policy)
    for label, key in (("read, tokens", "prefill_tokens"), ("of these quantized", "quantized_tokens")):
        table.add_row(label, *(_count(_sum(result.turns, key)) for result in results))
    table.add_row("written, tokens", *(_count(_sum(result.turns, "decode_tokens")) for result in results))
    if not any(result.emulated for result in results):  # an emulation's times would be read as a comparison
        for label, key in (("reading (prefill), s", "prefill_seconds"), ("writing (decode), s", "decode_seconds")):
            table.add_row(label, *(_seconds(_sum(result.turns, key)) for result in results))
    for number, question in enumerate(questions):
        table.add_row(question, *(" ".join(result.answers[number].split()) or "–" for result in results))
    return table


def _sum(turns: Sequence[TurnRecord], key: str) -> Any:
    """The total of one figure; unknown if it is unknown of any turn."""
    figures = [turn.model_dump()[key] for turn in turns]
    return None if None in figures else sum(figures)


def _count(tokens: int | None) -> str:
    return "–" if tokens is None else str(tokens)


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f}"


def _caveat(results: Sequence[DemoResult]) -> str:
    line = "cached + quantized + exact = the prompt's tokens; decode tokens are always exact"
    uniform = [result.policy for result in results if result.policy.startswith("uniform")]
    line += f", but under {', '.join(uniform)}." if uniform else "."
    if any(result.emulated for result in results):
        line += " The number format is emulated on this device: this shows function, not speed and not quality."
    return line
