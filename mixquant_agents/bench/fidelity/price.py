"""``python -m mixquant_agents.bench.fidelity.price FILE MODEL``: a result file's recipes, priced by measured tables.

For files from machines without the tables. MODEL's configuration is read, not its weights. Each recipe gets
``predicted_added_time_by_tables``: ``{gpu: {tokens: ratio}}``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mixquant_agents.bench.fidelity.cost import added_time
from mixquant_agents.bench.fidelity.recipes import EMULATION
from mixquant_agents.bench.fidelity.report import rounded
from mixquant_agents.bench.prefill.tables import load
from mixquant_agents.files import write_whole
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.calibration.network import Group, groups

__all__ = ["GPUS", "main", "price", "shapes_of"]

GPUS = ("b200", "rtx-pro-6000")


def shapes_of(model: str) -> list[Group]:
    """The Linear layers of a model, without its weights.

    Args:
        model: ``"embedded"``, a folder, or a hub id.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if model == "embedded":
        from mixquant_agents.embedded import prepare

        model = str(prepare())
    with torch.device("meta"):
        return groups(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)))


def price(report: dict[str, Any], members: Sequence[Group], folder: pathlib.Path | None = None) -> None:
    """Add the prices to ``report``, a result file's content; recipes that have a price by the roofline get one.

    Args:
        report: is changed.
        members: the measured model's layers.
        folder: of the tables; the installed wheel's where ``None``.
    """
    tables = {gpu: load(gpu, folder) for gpu in GPUS}
    for row in report["recipes"].values():
        if "predicted_added_time" not in row:
            continue
        resolved = resolve(PrecisionPolicy.model_validate(row["policy"]), EMULATION)
        row["predicted_added_time_by_tables"] = {
            gpu: rounded(added_time(members, resolved, gpu, tables=own)) for gpu, own in tables.items()
        }
    report["tables"] = next(iter(tables.values())).source


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("model")
    parser.add_argument("--tables", type=pathlib.Path, help="Folder of the tables; default: the installed wheel's.")
    options = parser.parse_args(arguments)
    report = json.loads(options.file.read_text())
    price(report, shapes_of(options.model), options.tables)
    write_whole(options.file, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
