"""``mixquant chat``. Reading order: :mod:`lines` (where messages come from) → :mod:`conversation` (a message, its
answer, and the line about it) → :mod:`slash` (what the user can ask of the conversation itself)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    message: Annotated[
        list[str] | None, typer.Argument(metavar="MESSAGE", help="Messages to send. Without one, chat asks for them.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[str, typer.Option(metavar="NAME", help="Precision policy.")] = "mixquant",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy. Default: the model's own.")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of EngineConfig; repeatable.")
    ] = None,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="Turn store. Default: your own.")] = None,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep counts and times of each turn.")] = True,
    content: Annotated[bool, typer.Option("--content", help="Record the messages, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Talk with a model; each turn is counted and timed.

    After each answer one line says what reading and writing took. On a terminal there are line editing, a history and
    /help.

    \b
    Example: mixquant chat --model Qwen/Qwen3-8B --policy mixquant
    """
    from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, VllmEngine
    from mixquant_agents.cli.arguments import engine_settings
    from mixquant_agents.cli.chat.conversation import Conversation
    from mixquant_agents.cli.chat.lines import read_lines, typed_lines
    from mixquant_agents.cli.chat.slash import take
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_agents.cli.recording import next_step, recorded_turns

    settings = {"max_num_seqs": 4, **engine_settings(engine or ())}
    config = EngineConfig(model=model, policy=PrecisionPolicy.of(policy), **settings)
    notes = progress_console()
    out = notes if as_json else result_console()
    interactive = not message and sys.stdin.isatty()
    vllm = VllmEngine(config)
    try:
        with recorded_turns(store, notes, record=record, content=content) as recorder:
            asyncio.run(vllm.start())
            chat = MixQuantChatModel(
                engine=vllm,
                max_tokens=max_tokens,
                temperature=temperature,
                recorders=() if recorder is None else (recorder,),
            )
            conversation = Conversation(chat, out, system=system, interactive=interactive)
            notes.print(conversation.heading(), style="dim", soft_wrap=not notes.is_terminal)
            lines = iter(message) if message else typed_lines(notes) if interactive else read_lines()
            for line in lines:
                if not take(conversation, line):
                    break
    finally:
        vllm.close()
    if as_json:
        print_json({**conversation.as_json(), "start_seconds": vllm.start_seconds})
    elif conversation.turns:
        next_step(notes, recorder, store)
