"""``mixquant calibrate``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="'embedded', a folder, or a hub id (with --output).")
    ] = "embedded",
    gptq: Annotated[bool, typer.Option("--gptq", help="Also round the quantized weights by GPTQ.")] = False,
    behind: Annotated[
        bool, typer.Option("--behind", help="With --gptq: for policies that keep the first 16 tokens exact.")
    ] = False,
    weight_scales: Annotated[
        str, typer.Option(metavar="KIND", help="Block scales of the weights: 'max' or '4/6'.")
    ] = "max",
    channel_scales: Annotated[
        str, typer.Option(metavar="KIND", help="What input channels are multiplied by: 'none' or 'balanced'.")
    ] = "none",
    count: Annotated[int, typer.Option(min=1, help="Conversations of calibration text.")] = 64,
    output: Annotated[
        pathlib.Path | None, typer.Option(metavar="FOLDER", help="Default: the model's own folder in the cache.")
    ] = None,
) -> None:
    """Calibrate NVFP4 on a model's activations.

    Measures the scales of activations; with --gptq also rounds the quantized weights by GPTQ. The result is kept in
    the cache.

    \b
    For policy mixquant-nvfp4: --gptq --weight-scales 4/6 --channel-scales
    balanced.

    Example: mixquant calibrate embedded --gptq
    """
    from mixquant_agents.cli.output import progress_bar, result_console
    from mixquant_agents.errors import ConfigError, ModelNotFoundError
    from mixquant_agents.precision.recipe import Recipe, WeightRounding
    from mixquant_agents.quant.calibration.store import calibrate

    if weight_scales not in ("max", "4/6"):
        raise ConfigError(f"--weight-scales {weight_scales}: give 'max' or '4/6'")
    if channel_scales not in ("none", "balanced"):
        raise ConfigError(f"--channel-scales {channel_scales}: give 'none' or 'balanced'")
    if behind and not gptq:
        raise ConfigError("--behind changes how GPTQ rounds; add --gptq")
    if model.startswith(("/", ".", "~")) and not pathlib.Path(model).expanduser().is_dir():
        raise ModelNotFoundError(f"model folder {model!r} does not exist; give a folder, a hub id or 'embedded'")
    if model != "embedded" and output is None and not pathlib.Path(model).expanduser().is_dir():
        raise ConfigError(f"a calibration of the hub's {model!r} needs a folder; add --output FOLDER")
    rounding: WeightRounding = ("gptq-behind" if behind else "gptq") if gptq else "nearest"
    recipe = Recipe(
        rounding,
        "4/6" if weight_scales == "4/6" else "max",
        channel_scales="balanced" if channel_scales == "balanced" else "none",
    )
    with progress_bar() as progress:
        folder = calibrate(model, recipe, output, count=count, progress=progress)
    result_console().print(f"calibration in {folder}", soft_wrap=True)
