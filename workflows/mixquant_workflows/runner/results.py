"""Results on disk, one JSON line per case, so that a stopped run goes on; and their summary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.stats import bootstrap, percentile

__all__ = ["ResultFile", "summarise"]

Row = Mapping[str, Any]
_TOKENS = ("prompt_tokens", "cached_tokens", "prefill_tokens", "quantized_tokens", "exact_tokens", "decode_tokens")
_SECONDS = {"queue_s": "queue_seconds", "prefill_s": "prefill_seconds", "decode_s": "decode_seconds"}


class ResultFile:
    """Rows of one run. The first line says what was run; only a run of the same may go on in the file. The file is only
    ever added to: a kill at any moment costs at most the line that is being written.

    Args:
        path: the file; ``None`` keeps rows in memory.
        header: what is run (model, seed, limits …).

    Attributes:
        rows: one per case and policy.
        notes: one per session that added rows: when, where and how it ran.

    Raises:
        ConfigError: the file is of another run, or no such file.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self._path = path
        self.rows: list[Row] = []
        self.notes: list[Mapping[str, Any]] = []
        self._glue = ""
        if path is None:
            return
        header = json.loads(json.dumps(header))
        first = json.dumps({"run": header}) + "\n"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if first.startswith(text):  # nothing yet, or killed while the first line was written
            if text != first:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(first)
            return
        stored, *lines = map(_parsed, text.splitlines())
        if not isinstance(stored, dict) or stored.get("run") != header:
            raise ConfigError(f"{path} holds results of another run ({stored}); name another file or remove it")
        rows = [line for line in lines if isinstance(line, dict)]  # a kill may have cut a line: its case runs again
        self.rows = [line for line in rows if "note" not in line]
        self.notes = [line["note"] for line in rows if "note" in line]
        self._glue = "" if text.endswith("\n") else "\n"

    @classmethod
    def of(cls, path: Path) -> ResultFile:
        """A finished file, whatever run it is of.

        Raises:
            ConfigError: there is no such file, or it holds no results.
        """
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        first = _parsed(lines[0]) if lines else None
        if not isinstance(first, dict) or "run" not in first:
            raise ConfigError(f"{path} is no file of results; name one that --results wrote")
        return cls(path, first["run"])

    def done(self, suite: str, policy: str) -> set[str]:
        """Cases that need not run again."""
        return {row["case"] for row in self.rows if (row["suite"], row["policy"]) == (suite, policy)}

    def add(self, row: Row) -> None:
        """Keep one row at once."""
        self.rows.append(row)
        self._write(row)

    def note(self, note: Mapping[str, Any]) -> None:
        """Keep how the rows that follow are made."""
        self.notes.append(note)
        self._write({"note": note})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._path is not None:
            glue, self._glue = self._glue, "\n"
            with self._path.open("a") as file:
                file.write(glue + json.dumps(line) + "\n")
            self._glue = ""  # written as a whole; else the next line begins anew


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def summarise(rows: Iterable[Row], baseline: str = "exact") -> dict[str, dict[str, dict[str, Any]]]:
    """Suite → policy → figures.

    ``score`` with ``ci95``; ``delta`` and ``delta_ci95``: paired difference to the ``baseline`` policy over the cases
    both ran; tokens by phase and seconds by phase, summed over all turns; TTFT percentiles over turns;
    ``task_p50_s``; ``engine_s``: seconds in which the engine worked for these cases, each second divided among those
    that ran, and ``engine_s_per_solved``: what a solved one cost, the failed ones included.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["suite"], {}).setdefault(row["policy"], []).append(row)
    return {
        suite: {
            policy: _figures(policy_rows, policies.get(baseline, []), policy == baseline)
            for policy, policy_rows in policies.items()
        }
        for suite, policies in groups.items()
    }


def _figures(rows: Sequence[Row], base: Sequence[Row], is_base: bool) -> dict[str, Any]:
    scores = [row["score"] for row in rows]
    turns = [turn for row in rows for turn in row["turns"]]
    figures: dict[str, Any] = {
        "score": sum(scores) / len(scores),
        "ci95": bootstrap(scores),
        "n": len(rows),
        "errors": sum(1 for row in rows if row.get("error")),
        "turns": len(turns),
    }
    if base and not is_base:
        of = {row["case"]: row["score"] for row in base}
        differences = [row["score"] - of[row["case"]] for row in rows if row["case"] in of]
        figures["delta"] = sum(differences) / len(differences) if differences else None
        figures["delta_ci95"] = bootstrap(differences)
    names = {name for row in rows for name in row.get("measures", {})}
    figures["measures"] = {
        name: sum(values) / len(values)
        for name in sorted(names)
        if (values := [row["measures"][name] for row in rows if name in row["measures"]])
    }
    for name in _TOKENS:
        figures[name] = _total(turns, name)
    for name, field in _SECONDS.items():
        figures[name] = _total(turns, field)
    ttft = [1e3 * turn["ttft_seconds"] for turn in turns if turn.get("ttft_seconds") is not None]
    figures["ttft_p50_ms"], figures["ttft_p95_ms"] = percentile(ttft, 0.5), percentile(ttft, 0.95)
    engine = [row["engine_seconds"] for row in rows if row.get("engine_seconds") is not None]
    figures["engine_s"] = sum(engine) if len(engine) == len(rows) else None
    solved = sum(scores)
    known = figures["engine_s"] is not None and solved > 0
    figures["engine_s_per_solved"] = figures["engine_s"] / solved if known else None
    figures["task_p50_s"] = percentile([row["seconds"] for row in rows], 0.5)
    figures["emulated"] = any(turn.get("emulated") for turn in turns)
    return figures


def _total(turns: Sequence[Row], name: str) -> float | None:
    """Sum over turns; ``None`` where no turn knows it."""
    values = [turn[name] for turn in turns if turn.get(name) is not None]
    return sum(values) if values else None
