"""Write ``docs/results/embedded-model.json`` from an evaluation and, where they were run, from ``mixquant bench agents``.

``python -m training.results EVAL_JSON ADAPTER_FOLDER [BENCH_JSON …]``. A column that was not run is null.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from training.bfcl import judge

__all__ = ["main"]

OUT = pathlib.Path("docs/results/embedded-model.json")
COMMAND = "python -m training.evaluate --count 300 --extra BFCL_PROMPTS --base (judged by python -m training.results)"
_POLICIES = {"uniform-nvfp4": "uniform_nvfp4", "mixquant-nvfp4": "mixquant_nvfp4", "exact": "exact"}


def main(evaluation: pathlib.Path, adapter: pathlib.Path, benches: list[pathlib.Path]) -> dict[str, Any]:
    """Merge, write and return the figures; shares are in percent."""
    measured = json.loads(evaluation.read_text())
    scores: dict[str, Any] = {}
    for name, columns in measured["scores"].items():
        ours, base = columns["adapter"], columns.get("base")
        scores[name] = _row(ours, base["percent"] if base else None)
    bfcl = {who: judge(answers) for who, answers in measured.get("extra", {}).items()}
    for name, ours in bfcl.get("adapter", {}).items():
        base = bfcl.get("base", {}).get(name)
        scores[name] = _row(ours, base["percent"] if base else None)
    commands = []
    for path in benches:
        bench = json.loads(path.read_text())
        commands.append(bench["command"])
        for name, policies in bench["suites"].items():
            row = scores.setdefault(
                name,
                {
                    "base": None,
                    "adapter": None,
                    "uniform_nvfp4": None,
                    "mixquant_nvfp4": None,
                    "n": None,
                    "ci95": None,
                    "why": {},
                },
            )
            for policy, figures in policies.items():
                share, ends = round(100 * figures["score"], 1), [round(100 * end, 1) for end in figures["ci95"]]
                row.setdefault("cpu_engine", {})[_POLICIES[policy]] = {
                    "percent": share,
                    "n": figures["n"],
                    "ci95": ends,
                }
                if policy != "exact":
                    row[_POLICIES[policy]] = share
                elif row["adapter"] is None:
                    row.update(adapter=share, n=figures["n"], ci95=ends)
    result = {
        "command": COMMAND,
        "device": "NVIDIA H200, float32, greedy, unconstrained; rows with cpu_engine also ran on vLLM on a CPU in float32",
        "engine_commands": commands,
        "scores": scores,
        "ppl_ratio": round(measured["ppl_ratio"], 4),
        "ppl": {name: round(value, 3) for name, value in measured["ppl"].items()},
        "adapter_bytes": (adapter / "adapter_model.safetensors").stat().st_size,
        "not_run": "null: base on BFCL, and every column without a figure; the grammar-constrained scores; see the model card for limits",
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _row(ours: dict[str, Any], base: float | None) -> dict[str, Any]:
    return {
        "base": base,
        "adapter": ours["percent"],
        "uniform_nvfp4": None,
        "mixquant_nvfp4": None,
        "n": ours["n"],
        "ci95": ours["ci95"],
        "why": ours["why"],
    }


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [pathlib.Path(name) for name in sys.argv[3:]])
