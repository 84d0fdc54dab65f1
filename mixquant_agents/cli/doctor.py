"""``mixquant doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Say what this machine can do: device, number formats (native, emulated or refused, and why), versions."""
    from mixquant_agents.cli.output import print_json, result_console
    from mixquant_agents.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
    else:
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
        embedded = report["embedded"]
        out.print(f"embedded model: {embedded['source']} (cache {embedded['cache'] or 'none'})", soft_wrap=True)
        out.print(", ".join(f"{name} {version}" for name, version in report["versions"].items()), style="dim")
        for problem in report["problems"]:
            out.print(Text.assemble(("problem: ", "red"), problem), soft_wrap=True)
    if report["problems"]:
        raise typer.Exit(1)
