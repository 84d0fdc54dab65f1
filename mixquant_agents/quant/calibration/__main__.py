"""``python -m mixquant_agents.quant.calibration MODEL``: calibrate a model; each line of stdout is a JSON object
``{"what", "share"}`` of progress. An engine runs it when a calibration is missing; people have ``mixquant calibrate``.
"""

from __future__ import annotations

import argparse
import json

from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.calibration.store import calibrate


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounding", choices=("nearest", "gptq", "gptq-behind"), default="nearest")
    parser.add_argument("--weight-scales", choices=("max", "4/6"), default="max")
    parser.add_argument("--channel-scales", choices=("none", "balanced"), default="none")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args(arguments)
    shown = -1

    def progress(what: str, share: float) -> None:
        nonlocal shown
        if int(10 * share) != shown:
            shown = int(10 * share)
            print(json.dumps({"what": what, "share": round(share, 2)}), flush=True)  # noqa: T201 - read by the engine

    recipe = Recipe(options.rounding, options.weight_scales, channel_scales=options.channel_scales)
    calibrate(options.model, recipe, count=options.count, progress=progress)


if __name__ == "__main__":
    main()
