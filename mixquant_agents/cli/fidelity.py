"""``mixquant fidelity``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option(help="'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[list[str] | None, typer.Option(help="Policy to compare; repeatable. Default: all.")] = None,
    prompts: Annotated[pathlib.Path | None, typer.Option(help="File, one prompt a line. Default: built in.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of each forced answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how far each precision policy's answers move from the exact model's (KL divergence, top-1 agreement)."""
    from rich.progress import Progress

    from mixquant_agents.bench.fidelity.measure import measure, named_policies
    from mixquant_agents.bench.fidelity.prompts import PROMPTS
    from mixquant_agents.cli.output import print_json, progress_console, result_console
    from mixquant_agents.errors import ConfigError

    policies = named_policies(policy or [])
    texts: tuple[str, ...] = PROMPTS
    if prompts is not None:
        try:
            texts = tuple(line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"--prompts {prompts}: {why}; give a text file, one prompt a line") from error
    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        report = measure(
            model, policies, texts, tokens, lambda what, share: bar.update(task, description=what, completed=share)
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    from rich.table import Table

    table = Table(title=f"{report.model}, {report.answer_tokens} answer tokens, against exact ({report.dtype})")
    for name in ("policy", "KL mean", "KL first token", "KL by prompt", "top-1 agreement"):
        table.add_column(name)
    for row in report.policies:
        spread = f"{row.kl_prompt_low:.3f} to {row.kl_prompt_high:.3f}"
        table.add_row(row.policy, f"{row.kl_mean:.3f}", f"{row.kl_first:.3f}", spread, f"{row.top1_agreement:.3f}")
    result_console().print(table)
