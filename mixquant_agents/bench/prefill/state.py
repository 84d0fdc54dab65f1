"""What ``mixquant bench prefill`` has measured, kept in a file after every round so that a run can be continued."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill.agents import AgentRuns
from mixquant_agents.bench.prefill.plan import Case
from mixquant_agents.errors import ConfigError
from mixquant_agents.files import json_in, write_whole

__all__ = ["Run", "State"]


@dataclass
class Run:
    """What one group of engines has shown: milliseconds per round, case and column."""

    columns: list[str]
    turns: dict[str, int]
    rounds: list[dict[str, dict[str, list[float]]]] = field(default_factory=list)


@dataclass
class State:
    """What has been measured; kept in a file after every round."""

    path: Path
    runs: list[Run] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    agents: AgentRuns | None = None

    @classmethod
    def load(cls, path: Path) -> State:
        """From the file, or empty.

        Raises:
            ConfigError: the file holds something else.
        """
        if not path.exists():
            return cls(path)
        stored = json_in(path, "--state")
        try:
            agents = stored.get("agents")
            runs = [Run(**run) for run in stored["runs"]]
            return cls(path, runs, {**stored["info"]}, agents and AgentRuns(**agents))
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"--state {path} is no state of this command; name another file") from error

    def take(self, **what: Any) -> None:
        """What is about to be measured.

        Raises:
            ConfigError: the file holds measurements of something else.
        """
        stored = {"gpus": 1, **self.info} if self.info else what  # files from before --gpus say nothing of it
        for name, value in what.items():
            if stored.get(name, value) != value:
                raise ConfigError(
                    f"{self.path} holds a run with {name} {stored[name]!r}, not {value!r}; give another --state"
                )
        self.info |= what

    def run_of(self, columns: list[str], cases: list[Case]) -> Run:
        """The run of these columns and cases, begun if it was not."""
        turns = {case.name: case.turns for case in cases}
        for run in self.runs:
            if (run.columns, run.turns) == (columns, turns):
                return run
        self.runs.append(Run(columns, turns))
        return self.runs[-1]

    def agents_of(self, seconds: float) -> AgentRuns:
        """The agents' runs of this length, begun if they were not.

        Raises:
            ConfigError: those at hand are of another length.
        """
        if self.agents is None:
            self.agents = AgentRuns(seconds)
        if self.agents.seconds != seconds:
            raise ConfigError(
                f"{self.path} holds agents' runs of {self.agents.seconds:g} s, not {seconds:g}; give another --state"
            )
        return self.agents

    def save(self) -> None:
        """Write the file; never half of it."""
        stored = {"info": self.info, "runs": [asdict(run) for run in self.runs]}
        if self.agents is not None:
            stored["agents"] = asdict(self.agents)
        write_whole(self.path, json.dumps(stored))
