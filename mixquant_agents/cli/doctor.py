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
    memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="With --model: a GPU's memory, instead of this machine's."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Report what this machine can do, and what is missing.

    Device, number formats, versions, what is installed, where things are kept. With a model or a template: what holds
    of chats and tool use on it, and of a mixture which layers of experts would have twins. No engine is started.

    \b
    Example: mixquant doctor --model Qwen/Qwen3-8B
    """
    if model is None and chat_template is None:
        report = _machine(as_json=as_json)
    else:
        report = _model(model, chat_template, revision, memory, trust_remote_code=trust_remote_code, as_json=as_json)
    if report["problems"]:
        raise typer.Exit(1)


def _model(
    model: str | None,
    template: Path | None,
    revision: str | None,
    memory: float | None,
    *,
    trust_remote_code: bool,
    as_json: bool,
) -> dict[str, Any]:
    from mixquant_agents.cli.output import print_json, result_console
    from mixquant_agents.config import EngineConfig
    from mixquant_agents.doctor import expert_layers
    from mixquant_agents.engine.vllm.model_check import check_model, check_template

    if model is not None:
        config = EngineConfig(
            model=model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            chat_template=None if template is None else str(template),
        )
        report = check_model(config)
        report["expert_layers"] = expert_layers(model, revision, memory)
    else:
        report = check_template(Path(template or ""))
    if as_json:
        print_json(report)
        return report
    from rich.table import Table
    from rich.text import Text

    out = result_console()
    if experts := report.get("expert_layers"):
        out.print(experts["text"], soft_wrap=True)
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
    from mixquant_agents.cli.output import own_command, print_json, result_console
    from mixquant_agents.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return report
    from rich.table import Table
    from rich.text import Text

    out = result_console()
    memory = "" if report["memory_bytes"] is None else f", {report['memory_bytes'] / 2**30:.0f} GiB of memory"
    out.print(Text.assemble((report["device"] or "no device", "bold"), f", {report['cores']} cores{memory}"))
    if report["auto"] is not None:
        out.print(f"\n{_policy_words(report)}")
    if report["formats"]:
        out.print()
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in ("format", "here", "why"):
            table.add_column(name)
        for name, support in report["formats"].items():
            kernel = report.get("kernels", {}).get(name)
            table.add_row(name, support["status"], support["reason"] or (_kernel_words(kernel) if kernel else ""))
        if nested := report.get("nested"):
            words = nested["reason"] or _kernel_words(nested)
            table.add_row("fp8, nested storage", nested["status"], words)
        out.print(table)
    facts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column()
    for label, words in _facts(report):
        facts.add_row(Text(label, "dim"), words)
    out.print()
    out.print(facts)
    for problem in report["problems"]:
        out.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)
    if not report["problems"]:
        out.print(f"\nnext: {own_command()} demo", soft_wrap=True)
    return report


def _policy_words(report: dict[str, Any]) -> str:
    """What the policy ``mixquant`` does on this device."""
    from mixquant_agents.precision.formats import NumberFormat
    from mixquant_agents.precision.policy import NVFP4_RECIPE

    auto_format = report["auto"]["prefill_format"]
    if auto_format != "exact":
        words = f"Policy 'mixquant' reads in {auto_format.upper()} here, and writes exact."
        if auto_format == NumberFormat.NVFP4:
            first, last = NVFP4_RECIPE["exact_first_tokens"], NVFP4_RECIPE["exact_last_tokens"]
            words += f" Each prompt's static beginning, first {first} and last {last} tokens are read exact, too."
        return words
    emulated = next((name for name, support in report["formats"].items() if support["status"] == "emulated"), None)
    words = "Policy 'mixquant' reads exact here: this device has no arithmetic for a low-precision format."
    if emulated is not None:
        words += (
            f" To see one at work give --policy mixquant-{emulated}: emulated, it shows the rounding, not the speed."
        )
    return words


def _kernel_words(kernel: dict[str, Any]) -> str:
    if kernel.get("problem"):
        return str(kernel["problem"])
    name = f"kernel {kernel['kernel']}, " if kernel["kernel"] else ""
    return f"{name}agrees with the reference within {kernel['error']:.2g}"


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What is installed and where things are kept: label and words of each line."""
    complete = [name for name, missing in report["extras"].items() if not missing]
    lines = [("installed", ", ".join(f"{name} {version}" for name, version in report["versions"].items()))]
    if complete:
        lines.append(("extras", ", ".join(complete)))
    for name, missing in report["extras"].items():
        if missing:
            lines.append((f"no {name}", f"pip install 'mixquant-agents[{name}]' (lacks {', '.join(missing)})"))
    embedded, store = report["embedded"], report["store"]
    lines.append(("embedded model", f"{embedded['source']}, prepared in {embedded['cache'] or 'no folder'}"))
    kept = "nothing recorded yet" if store["bytes"] is None else f"{store['bytes'] / 1e6:.1f} MB"
    lines.append(("turn store", f"{store['path']} ({kept})"))
    free = {f"{size / 1e9:.0f} GB free": folder for folder, size in report["disks"].items()}
    lines += [("disk", f"{size} for {folder}") for size, folder in free.items()]
    return lines
