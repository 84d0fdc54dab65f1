"""A simulated run as a trace that load generators replay (AIPerf ``--custom-dataset-type mooncake_trace``): one JSON
object a turn, with its session, lengths, the pause before it, and hashes of the blocks of its prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixquant_agents.files import write_whole
from mixquant_agents.planning.simulate import Outcome
from mixquant_agents.planning.workload import Workload

__all__ = ["BLOCK", "rows", "write_trace"]

BLOCK = 512
"""Tokens of a block, as in Mooncake's traces."""


def rows(outcome: Outcome, workload: Workload) -> Iterator[dict[str, Any]]:
    """The turns in the order in which they were asked.

    ``hash_ids`` name the prompt's whole blocks: those of the shared beginning are alike for all, those of a
    conversation are its own, and a longer prompt of it begins with the same ones.
    """
    shared = workload.shared_tokens // BLOCK
    numbers: dict[tuple[int, int, int], int] = {}
    ended: dict[int, float] = {}
    for turn in sorted(outcome.turns, key=lambda turn: turn.asked):
        blocks = range(turn.prompt // BLOCK)
        keys = [(-1, 0, at) if at < shared else (turn.agent, turn.conversation, at) for at in blocks]
        row: dict[str, Any] = {
            "timestamp": round(turn.asked * 1000),
            "session_id": f"agent-{turn.agent}-{turn.conversation}",
            "input_length": turn.prompt,
            "output_length": turn.answer,
            "hash_ids": [numbers.setdefault(key, len(numbers)) for key in keys],
        }
        if turn.agent in ended:
            row["delay"] = round((turn.asked - ended[turn.agent]) * 1000)
        if turn.stamps:
            ended[turn.agent] = turn.stamps[-1]
        yield row


def write_trace(path: Path, outcome: Outcome, workload: Workload) -> int:
    """Write it as JSON lines; the number of turns."""
    lines = [json.dumps(row) for row in rows(outcome, workload)]
    write_whole(path, "".join(f"{line}\n" for line in lines))
    return len(lines)
