"""``mixquant chat``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]


def command(
    message: Annotated[list[str] | None, typer.Argument(help="Messages to send; without any, they are read.")] = None,
    model: Annotated[str, typer.Option(help="Model: 'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[str, typer.Option(help="Precision policy preset.")] = "mixquant",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy. Default: the model's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Talk with a model; after each answer one line says what reading and writing took."""
    from mixquant_agents import EngineConfig, PrecisionPolicy, VllmEngine
    from mixquant_agents.cli.output import print_json, progress_console, result_console

    config = EngineConfig(model=model, policy=PrecisionPolicy.of(policy), max_num_seqs=4)
    notes = progress_console()
    out = notes if as_json else result_console()

    async def go() -> dict[str, Any]:
        engine = VllmEngine(config)
        try:
            return await _talk(engine, _lines(message, notes), system, max_tokens, temperature, out)
        finally:
            await engine.aclose()

    result = asyncio.run(go())
    if as_json:
        print_json(result)


def _lines(given: list[str] | None, notes: Console) -> Iterator[str]:
    """The user's messages: those given, else standard input line by line until it ends."""
    if given:
        yield from given
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            notes.print("you> ", style="bold", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


async def _talk(
    engine: Any, lines: Iterator[str], system: str | None, max_tokens: int, temperature: float | None, out: Console
) -> dict[str, Any]:
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

    from mixquant_agents import MixQuantChatModel

    chat = MixQuantChatModel(engine=engine, max_tokens=max_tokens, temperature=temperature)
    capabilities = await engine.capabilities()
    messages: list[BaseMessage] = [SystemMessage(system)] if system else []
    turns: list[dict[str, Any]] = []
    while (line := await asyncio.to_thread(next, lines, None)) is not None:
        messages.append(HumanMessage(line))
        answer: Any = None
        async for chunk in chat.astream(messages):
            out.print(str(chunk.text), end="", markup=False, soft_wrap=True)
            answer = chunk if answer is None else answer + chunk
        messages.append(AIMessage(answer.content))
        turn = answer.response_metadata["turn"]
        turns.append({"message": line, "answer": str(answer.text), "turn": turn})
        out.print(f"\n{_summary(turn)}", style="dim", soft_wrap=True)
    return {
        "model": capabilities.model,
        "policy": capabilities.policy,
        "emulated": capabilities.emulated,
        "start_seconds": getattr(engine, "start_seconds", None),
        "turns": turns,
    }


def _summary(turn: dict[str, Any]) -> str:
    def seconds(name: str) -> str:
        value = turn[name]
        return "?" if value is None else f"{value:.2f} s"

    read = f"read {turn['prefill_tokens']} new + {turn['cached_tokens']} cached in {seconds('prefill_seconds')}"
    formats = f" ({turn['quantized_tokens']} in {turn['prefill_format']})" if turn["quantized_tokens"] else ""
    wrote = f"wrote {turn['decode_tokens']} in {seconds('decode_seconds')}"
    return f"{read}{formats} · first token after {seconds('ttft_seconds')} · {wrote}"
