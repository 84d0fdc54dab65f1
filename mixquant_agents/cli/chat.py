"""``mixquant chat``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixquant_agents.errors import RequestError

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
    interactive = not message and sys.stdin.isatty()
    lines = iter(message) if message else _lines(notes if interactive else None)
    engine = VllmEngine(config)
    try:
        result = _talk(engine, lines, system, max_tokens, temperature, out, interactive=interactive)
    finally:
        engine.close()
    if as_json:
        print_json(result)


def _lines(prompt: Console | None) -> Iterator[str]:
    """The user's messages from standard input, line by line until it ends; asked for on ``prompt`` if there is one."""
    while True:
        if prompt is not None:
            prompt.print("you> ", style="bold", end="")
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise RequestError(f"what was read is no text ({error}); give UTF-8") from error
        if not line:
            return
        if line.strip():
            yield line.strip()


def _talk(
    engine: Any,
    lines: Iterator[str],
    system: str | None,
    max_tokens: int,
    temperature: float | None,
    out: Console,
    *,
    interactive: bool = False,
) -> dict[str, Any]:
    """The conversation. Without an event loop of its own, so that Ctrl-C is heard at the prompt; where somebody sits
    there, it ends an answer and not the conversation."""
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

    from mixquant_agents import MixQuantChatModel

    chat = MixQuantChatModel(engine=engine, max_tokens=max_tokens, temperature=temperature)
    asyncio.run(engine.start())
    info = engine.info
    messages: list[BaseMessage] = [SystemMessage(system)] if system else []
    turns: list[dict[str, Any]] = []
    for line in lines:
        messages.append(HumanMessage(line))
        pieces: list[str] = []
        turn: dict[str, Any] | None = None
        try:
            stream: Any = chat.stream(messages)
            with closing(stream):
                for chunk in stream:
                    pieces.append(str(chunk.text))
                    out.print(pieces[-1], end="", soft_wrap=True)
                    turn = chunk.response_metadata.get("turn", turn)
        except KeyboardInterrupt:
            if not interactive:
                raise
        except RequestError as error:  # of this message: the conversation can go on without it
            if not interactive:
                raise
            messages.pop()
            out.print(f"\n{error}", style="red", soft_wrap=True)
            continue
        messages.append(AIMessage("".join(pieces)))
        if turn is None:
            out.print("\n(stopped)", style="dim")
            continue
        turns.append({"message": line, "answer": "".join(pieces), "turn": turn})
        out.print(f"\n{_summary(turn)}", style="dim", soft_wrap=True)
    return {
        "model": info.model,
        "policy": info.policy,
        "emulated": info.emulated,
        "start_seconds": engine.start_seconds,
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
