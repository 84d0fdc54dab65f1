"""``python -m mixquant_agents.bench.fidelity.tasks FILE ROWS…``: task scores of agent suites, added to a result file.

ROWS are what ``mixquant bench agents --results`` wrote, gzipped or not. Policies are compared case by case: ``tasks``
has each suite's score by policy with the 95 % interval of its paired difference to ``exact``, and ``rows_quantized``:
the share of prefilled rows that ran quantized, without which a small difference says little. What ``uniform-nvfp4``
loses against ``exact`` over all cases of all suites is the loss; ``pooled_loss_won_back`` is the share of it that a
policy does not lose, with an interval over cases, drawn within each suite.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mixquant_agents.bench.fidelity.report import rounded
from mixquant_agents.errors import ConfigError
from mixquant_agents.files import write_whole

__all__ = ["Rows", "main", "read", "rows_quantized", "scores_of", "task_scores", "won_back"]

EXACT, WORST = "exact", "uniform-nvfp4"
DRAWS = 4000
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Suite → policy → case → score."""

Rows = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""Suite → policy → case → the case's row of a file of results."""


def read(paths: Iterable[pathlib.Path]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """The rows of files of results; lines that are no results are left out.

    Raises:
        ConfigError: there are none.
    """
    rows: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for path in paths:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a killed run's last line
                continue
            if isinstance(row, dict) and {"suite", "policy", "case", "score"} <= row.keys():
                rows.setdefault(row["suite"], {}).setdefault(row["policy"], {})[row["case"]] = row
    if not rows:
        raise ConfigError("no results of tasks in these files; give what mixquant bench agents --results wrote")
    return rows


def scores_of(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """The rows' scores."""
    return {
        suite: {
            policy: {case: float(row["score"]) for case, row in cases.items()} for policy, cases in policies.items()
        }
        for suite, policies in rows.items()
    }


def rows_quantized(rows: Rows) -> dict[str, dict[str, float]]:
    """Suite → policy → the share of prefilled rows that ran quantized; left out where turns were not counted."""
    shares: dict[str, dict[str, float]] = {}
    for suite, policies in rows.items():
        for policy, cases in policies.items():
            turns = [turn for row in cases.values() for turn in row.get("turns") or ()]
            counts = [(turn.get("quantized_tokens"), turn.get("prefill_tokens")) for turn in turns]
            known = [(quantized, read) for quantized, read in counts if quantized is not None and read]
            if known:
                shares.setdefault(suite, {})[policy] = sum(q for q, _ in known) / sum(read for _, read in known)
    return shares


def task_scores(scores: Scores, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """Suite → policy → ``score``, ``n``, and ``delta_ci95`` of the paired difference to exact where both ran a case."""
    rng = np.random.default_rng(seed)
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for suite, policies in scores.items():
        for policy, cases in policies.items():
            row: dict[str, Any] = {"score": float(np.mean(list(cases.values()))), "n": len(cases)}
            exact = policies.get(EXACT, {})
            pairs = [cases[case] - exact[case] for case in cases if case in exact]
            if policy != EXACT and pairs:
                row["delta"] = float(np.mean(pairs))
                drawn = rng.integers(0, len(pairs), size=(DRAWS, len(pairs)))
                row["delta_ci95"] = [float(x) for x in np.percentile(np.array(pairs)[drawn].mean(1), (2.5, 97.5))]
            tasks.setdefault(suite, {})[policy] = row
    return tasks


def won_back(scores: Scores, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By policy: ``share`` of the loss that is won back over the cases that all three ran, its ``ci95``, and ``n``."""
    policies = dict.fromkeys(policy for own in scores.values() for policy in own)
    made = {}
    for policy in policies:
        if policy in (EXACT, WORST):
            continue
        suites = [
            np.array([[own[name][case] for name in (EXACT, WORST, policy)] for case in own[policy]
                      if case in own[EXACT] and case in own[WORST]])
            for own in scores.values()
            if {EXACT, WORST, policy} <= own.keys()
        ]  # fmt: skip
        suites = [own for own in suites if len(own)]
        if suites:
            rng = np.random.default_rng(seed)
            drawn = [_share([own[rng.integers(0, len(own), len(own))] for own in suites]) for _ in range(DRAWS)]
            shares = [share for share in drawn if share is not None]
            made[policy] = {
                "share": _share(suites),
                "ci95": [float(x) for x in np.percentile(shares, (2.5, 97.5))] if shares else None,
                "n": sum(map(len, suites)),
            }
    return made


def _share(suites: Sequence[np.ndarray[Any, Any]]) -> float | None:
    """Of columns exact, worst and policy: over all cases; ``None`` where nothing is lost."""
    exact, worst, own = np.concatenate(suites).sum(0)
    return float((own - worst) / (exact - worst)) if exact > worst else None


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("rows", type=pathlib.Path, nargs="+")
    parser.add_argument("--command", default="", help="What made the rows.")
    options = parser.parse_args(arguments)
    rows = read(options.rows)
    scores = scores_of(rows)
    tasks = task_scores(scores)
    for suite, shares in rows_quantized(rows).items():
        for policy, share in shares.items():
            tasks[suite][policy]["rows_quantized"] = share
    report = json.loads(options.file.read_text())
    report |= rounded({"tasks": tasks, "pooled_loss_won_back": won_back(scores)})
    if options.command:
        report["tasks_command"] = options.command
    write_whole(options.file, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
