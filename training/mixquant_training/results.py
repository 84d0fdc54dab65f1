"""Write ``docs/results/embedded-model.json`` from evaluations and, where they were run, from ``mixquant bench agents``.

``python -m mixquant_training.results EVAL_JSON[,EVAL_JSON…] ADAPTER_FOLDER [BENCH_JSON …]``. A column that was not run is null; of a
suite that several evaluations hold the last one counts; ``before:JSON`` is an evaluation of the adapter shipped before, or
the results file of that time. The base's figures stay as the file had them unless they are new.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

__all__ = ["main"]

OUT = pathlib.Path(__file__).parents[2] / "docs" / "results" / "embedded-model.json"
COMMAND = (
    "python -m mixquant_training.evaluate; the rest: engine_commands (merged by python -m mixquant_training.results)"
)
_POLICIES = {"uniform-nvfp4": "uniform_nvfp4", "mixquant-nvfp4": "mixquant_nvfp4", "exact": "exact"}


def main(
    evaluations: list[pathlib.Path], adapter: pathlib.Path, benches: list[pathlib.Path], old: list[pathlib.Path]
) -> dict[str, Any]:
    """Merge, write and return the figures; shares are in percent."""
    scores: dict[str, Any] = {}
    before = json.loads(OUT.read_text())["scores"] if OUT.exists() else {}
    ppl: dict[str, float] = {}
    for path in evaluations:
        measured = json.loads(path.read_text())
        for name, columns in measured["scores"].items():
            base = columns["base"]["percent"] if "base" in columns else before.get(name, {}).get("base")
            scores[name] = _row(columns["adapter"], base, measured["device"])
        ppl.update(measured["ppl"])
    earlier = {
        name: _percent(columns["adapter"])
        for path in old
        for name, columns in json.loads(path.read_text())["scores"].items()
        if name in scores
    }
    for name, percent in earlier.items():
        scores[name]["adapter_before"] = percent
    commands = []
    for path in benches:
        bench = json.loads(path.read_text())
        commands.append(bench["command"])
        for name, policies in bench.get("constrained", {}).items():  # calls held by grammar: a column of its own
            row = scores.setdefault(name, _empty(before.get(name, {}).get("base")))
            row["constrained"] = {_POLICIES[policy]: _share(figures) for policy, figures in policies.items()}
        for name, policies in bench.get("suites", {}).items():
            row = scores.setdefault(name, _empty(before.get(name, {}).get("base")))
            for policy, figures in policies.items():
                found = _share(figures)
                row.setdefault("cpu_engine", {})[_POLICIES[policy]] = found
                if policy != "exact":
                    row[_POLICIES[policy]] = found["percent"]
                elif row["adapter"] is None:
                    row.update(adapter=found["percent"], n=found["n"], ci95=found["ci95"], device="CPU")
    result = {
        "command": COMMAND,
        "device": "each row names its own; plain PyTorch, float32, greedy, unconstrained; cpu_engine: vLLM on a CPU in float32",
        "engine_commands": commands,
        "scores": scores,
        "ppl_ratio": round(ppl["adapter"] / ppl["base"], 4) if ppl else None,
        "ppl": {name: round(value, 3) for name, value in ppl.items()},
        "adapter_bytes": (adapter / "adapter_model.safetensors").stat().st_size,
        "not_run": "null: what was not run. Base scores are of an earlier evaluation of the same suites, which the base takes "
        "part in only where --base is given.",
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _share(figures: dict[str, Any]) -> dict[str, Any]:
    ends = [round(100 * end, 1) for end in figures["ci95"]]
    return {"percent": round(100 * figures["score"], 1), "n": figures["n"], "ci95": ends}


def _empty(base: float | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(["base", "adapter", "uniform_nvfp4", "mixquant_nvfp4", "n", "ci95"])
    return {**row, "base": base, "why": {}, "device": None}


def _percent(figure: dict[str, Any] | float) -> float:
    return figure["percent"] if isinstance(figure, dict) else figure


def _row(ours: dict[str, Any], base: float | None, device: str) -> dict[str, Any]:
    found = {"adapter": ours["percent"], "n": ours["n"], "ci95": ours["ci95"], "why": ours["why"], "device": device}
    return {**_empty(base), **found}


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    given = sys.argv[1].split(",")
    main(
        [pathlib.Path(name) for name in given if not name.startswith("before:")],
        pathlib.Path(sys.argv[2]),
        [pathlib.Path(name) for name in sys.argv[3:]],
        [pathlib.Path(name.removeprefix("before:")) for name in given if name.startswith("before:")],
    )
