"""``mixquant calibrate``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a hub id (with --out).")] = "embedded",
    gptq: Annotated[bool, typer.Option("--gptq", help="Round the twins by GPTQ, too.")] = False,
    weight_scales: Annotated[str, typer.Option(help="Block scales of these twins: 'max' or '4/6'.")] = "max",
    count: Annotated[int, typer.Option(min=1, help="Conversations of calibration text.")] = 64,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder. Default: the model's own in the cache.")] = None,
) -> None:
    """Look at a model's activations once, for NVFP4: their scales, and twins rounded by GPTQ. Cached."""
    from rich.progress import Progress

    from mixquant_agents.cli.output import progress_console, result_console
    from mixquant_agents.errors import ConfigError
    from mixquant_agents.precision.recipe import Recipe
    from mixquant_agents.quant.calibration.store import calibrate

    if weight_scales not in ("max", "4/6"):
        raise ConfigError(f"--weight-scales {weight_scales}: give 'max' or '4/6'")
    recipe = Recipe("gptq" if gptq else "nearest", "4/6" if weight_scales == "4/6" else "max")
    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)
        folder = calibrate(
            model,
            recipe,
            out,
            count=count,
            progress=lambda what, share: bar.update(task, description=what, completed=share),
        )
    result_console().print(f"calibration in {folder}", soft_wrap=True)
