"""``mixquant doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Check chats and tool use: a folder, a hub id, 'embedded'."),
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this Jinja template, on --model's tokenizer if given.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Let the tokenizer run its own code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what this machine can do, and what is missing.

    Device, number formats, versions, what is installed, where things are kept. With a model or a template: what holds
    of chats and tool use on it. No engine is started.

    \b
    Example: mixquant doctor --model Qwen/Qwen3-8B
    """
    if model is None and chat_template is None:
        report = _machine(as_json=as_json)
    else:
        report = _model(model, chat_template, revision, trust_remote_code=trust_remote_code, as_json=as_json)
    if report["problems"]:
        raise typer.Exit(1)


def _model(
    model: str | None, template: Path | None, revision: str | None, *, trust_remote_code: bool, as_json: bool
) -> dict[str, Any]:
    from mixquant_agents.cli.output import print_json, result_console
    from mixquant_agents.config import EngineConfig
    from mixquant_agents.engine.vllm.model_check import check_model, check_template

    if model is not None:
        config = EngineConfig(
            model=model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            chat_template=None if template is None else str(template),
        )
        report = check_model(config)
    else:
        report = check_template(Path(template or ""))
    if as_json:
        print_json(report)
        return report
    from rich.table import Table
    from rich.text import Text

    out = result_console()
    calls, thoughts = report["tool_parser"] or "nobody", report["reasoning_parser"] or "nobody"
    parsers = f"  calls read by {calls}, thoughts by {thoughts}"
    out.print(Text.assemble((report["model"], "bold"), parsers), soft_wrap=True)
    table = Table()
    for name in ("case", "prompt", "answer", "how"):
        table.add_column(name)
    for case in report["cases"]:
        style = "red" if case["wrong"] else ""
        table.add_row(case["case"], case["prompt"], case["answer"] or "", Text(case["detail"] or ""), style=style)
    out.print(table)
    return report


def _machine(*, as_json: bool) -> dict[str, Any]:
    from mixquant_agents.cli.output import print_json, result_console
    from mixquant_agents.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return report
    from rich.table import Table
    from rich.text import Text

    out = result_console()
    memory = report["memory_bytes"]
    size = "" if memory is None else f", {memory / 2**30:.0f} GiB"
    out.print(Text.assemble((report["device"] or "no device", "bold"), f"  {report['cores']} cores{size}"))
    if report["formats"]:
        table = Table()
        for name in ("format", "here", "why"):
            table.add_column(name)
        for name, support in report["formats"].items():
            table.add_row(name, support["status"], support["reason"] or "")
        out.print(table)
    if report["auto"] is not None:
        reason = f": {report['auto']['reason']}" if report["auto"]["reason"] else ""
        out.print(f"policy 'mixquant' reads in {report['auto']['prefill_format']}{reason}", soft_wrap=True)
    for name, found in report.get("kernels", {}).items():
        kernel = f" ({found['kernel']})" if found["kernel"] else ""
        agrees = found.get("problem") or f"its product agrees with the reference within {found['error']:.2g}"
        out.print(f"{name}{kernel}: {agrees}", soft_wrap=True)
    embedded = report["embedded"]
    out.print(f"embedded model: {embedded['source']} (cache {embedded['cache'] or 'none'})", soft_wrap=True)
    out.print(", ".join(f"{name} {version}" for name, version in report["versions"].items()), style="dim")
    for problem in report["problems"]:
        out.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)
    return report
