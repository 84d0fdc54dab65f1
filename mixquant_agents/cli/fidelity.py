"""``mixquant fidelity``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Option(metavar="NAME", help="'embedded', a folder, or a hub id.")] = "embedded",
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Policy to compare; repeatable. Default: all.")
    ] = None,
    prompts: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="File, one prompt a line. Default: built in.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of each forced answer.")] = 64,
    agents: Annotated[int, typer.Option(min=0, help="Instead, compare recipes on N agent prompts.")] = 0,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --agents: recipe; repeatable. Default: all.")
    ] = None,
    output: Annotated[pathlib.Path | None, typer.Option(metavar="FILE", help="Also write the result, as JSON.")] = None,
    plot: Annotated[
        pathlib.Path | None, typer.Option(metavar="FILE", help="With --agents: a picture (.png, .svg, .pdf).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure how far each policy's answers move from exact.

    KL divergence and top-1 agreement over forced answers. With --agents: recipes for NVFP4 on agent contexts, by
    source, position and turn, with their predicted cost.

    \b
    Example: mixquant fidelity --policy mixquant-fp8 --policy uniform-fp8
    """
    from mixquant_agents.cli.arguments import comma_lists, command_line, output_file
    from mixquant_agents.errors import ConfigError

    output_file("--output", output)
    if agents:
        if policy or prompts:
            raise ConfigError("--agents compares recipes on prompts of its own; leave --policy and --prompts out")
        _agents(model, agents, tokens, tuple(comma_lists(recipe or ())), output, plot, as_json=as_json)
        return
    if recipe or plot:
        raise ConfigError("--recipe and --plot are of the study on agent prompts; add --agents 100")
    from mixquant_agents.bench.fidelity.measure import measure, named_policies
    from mixquant_agents.bench.fidelity.prompts import PROMPTS
    from mixquant_agents.cli.output import print_json, progress_bar, result_console, write_json

    policies = named_policies(comma_lists(policy or []))
    texts: tuple[str, ...] = PROMPTS
    if prompts is not None:
        try:
            texts = tuple(line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"--prompts {prompts}: {why}; give a text file, one prompt a line") from error
    with progress_bar() as progress:
        report = measure(model, policies, texts, tokens, progress)
    figures = {"command": command_line(), **report.model_dump(mode="json")}
    if output is not None:
        write_json(output, figures)
    if as_json:
        print_json(figures)
        return
    from rich.table import Table

    table = Table(title=f"{report.model}, {report.answer_tokens} answer tokens, against exact ({report.dtype})")
    for name in ("policy", "KL mean", "KL first token", "KL by prompt", "top-1 agreement"):
        table.add_column(name)
    for row in report.policies:
        spread = f"{row.kl_prompt_low:.3f} to {row.kl_prompt_high:.3f}"
        table.add_row(row.policy, f"{row.kl_mean:.3f}", f"{row.kl_first:.3f}", spread, f"{row.top1_agreement:.3f}")
    result_console().print(table)


def _agents(
    model: str,
    count: int,
    tokens: int,
    only: tuple[str, ...],
    out: pathlib.Path | None,
    plot: pathlib.Path | None,
    *,
    as_json: bool,
) -> None:
    from mixquant_agents.bench.fidelity.plots import save
    from mixquant_agents.bench.fidelity.report import rounded, table
    from mixquant_agents.bench.fidelity.study import Settings, known_recipes, run
    from mixquant_agents.cli.arguments import output_file
    from mixquant_agents.cli.output import print_json, progress_bar, result_console, write_json
    from mixquant_agents.quant.calibration.network import load

    known_recipes(only)
    output_file("--plot", plot)
    settings = Settings(prompts=count, tokens=tokens, only=only)
    with progress_bar() as progress:
        network, tokenizer = load(model)
        result = run(network, tokenizer, settings, progress)
    command = f"mixquant fidelity --model {model} --agents {count} --tokens {tokens}"
    report = {"command": command + "".join(f" --recipe {name}" for name in only), **rounded(result.json())}
    if out is not None:
        write_json(out, report)
    if plot is not None:
        save(report, plot)
    if as_json:
        print_json(report)
    else:
        result_console().print(table(report), soft_wrap=True, markup=False, highlight=False)
