"""``python -m mixquant_agents.bench.fidelity MODEL --out FILE``: the study, without the command line's dependencies."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from typing import Any

from mixquant_agents.bench.fidelity.report import rounded, table
from mixquant_agents.bench.fidelity.study import Settings, StudyResult, run
from mixquant_agents.files import write_whole
from mixquant_agents.quant.calibration.distill import Training
from mixquant_agents.quant.calibration.network import load

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--prompts", type=int, default=defaults.prompts)
    parser.add_argument("--plain", type=int, default=defaults.plain)
    parser.add_argument("--tokens", type=int, default=defaults.tokens)
    parser.add_argument("--calibration", type=int, default=defaults.calibration)
    parser.add_argument("--turns", type=int, default=defaults.turns)
    parser.add_argument("--no-layers", action="store_true")
    parser.add_argument("--ranking", type=int, default=defaults.ranking)
    parser.add_argument("--no-units", action="store_true")
    parser.add_argument("--no-sources", action="store_true")
    parser.add_argument("--lessons", type=int, default=defaults.lessons)
    parser.add_argument("--train-steps", type=int, default=defaults.training.steps)
    parser.add_argument("--train-rate", type=float, default=defaults.training.rate)
    parser.add_argument("--train-cache", type=float, default=defaults.training.cache)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--rows", type=int, default=defaults.rows)
    options = parser.parse_args(arguments)
    settings = Settings(
        prompts=options.prompts,
        plain=options.plain,
        tokens=options.tokens,
        calibration=options.calibration,
        layers=not options.no_layers,
        units=not options.no_units,
        ranking=options.ranking,
        sources=not options.no_sources,
        lessons=options.lessons,
        training=Training(options.train_steps, rate=options.train_rate, cache=options.train_cache),
        turns=options.turns,
        only=tuple(options.only),
        seed=options.seed,
        rows=options.rows,
    )
    started = time.perf_counter()

    def progress(what: str, share: float) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {share:4.0%} {what}", file=sys.stderr, flush=True)  # noqa: T201 - a script without the command line's console

    progress("loading", 0.0)
    network, tokenizer = load(options.model, options.dtype)
    command = "python -m mixquant_agents.bench.fidelity " + " ".join(arguments or sys.argv[1:])

    def report_of(result: StudyResult) -> dict[str, Any]:
        return {"command": command, **rounded(result.json())}

    def write(result: StudyResult) -> None:
        if options.out is not None:
            write_whole(options.out, json.dumps(report_of(result), indent=1) + "\n")

    result = run(network, tokenizer, settings, progress, write)
    write(result)
    print(table(report_of(result)))  # noqa: T201 - the result goes to stdout


if __name__ == "__main__":
    main()
