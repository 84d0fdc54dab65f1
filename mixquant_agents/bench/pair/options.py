"""What a run measures, and its command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.engine.pair.engine import KV_BACK_MARGIN

__all__ = ["Options"]

_PROGRAM = "python -m mixquant_agents.bench.pair"


@dataclass(frozen=True, slots=True)
class Options:
    """What a run measures; see the help of the command line.

    Attributes:
        command: the command line, for the result.
    """

    command: str
    model: str
    tokenizer: Path | None
    policy: str
    connector: str
    lengths: str
    answer: int
    repeats: int
    writers: int
    mixed_answer: int
    mixed_prompt: int
    every: float
    turns: int
    threads: int
    new: int
    turn_answer: int
    block: int
    kv_gib: float
    kept_seconds: int
    eager: bool
    output: Path | None

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of the cold prompts."""
        return [int(length) for length in self.lengths.split(",")]

    @property
    def random_weights(self) -> bool:
        """Whether the model is a shape alone."""
        return self.model in SHAPES

    @classmethod
    def parsed(cls, arguments: Sequence[str] | None) -> Options:
        """From ``arguments``, or else those of the process."""
        parser = argparse.ArgumentParser(
            prog=_PROGRAM, description="Measure a pair of engines beside each of the two alone."
        )
        parser.add_argument("--model", default="embedded")
        parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer a shape borrows")
        parser.add_argument("--policy", default="mixquant-int8", help="the reading engine's")
        parser.add_argument("--connector", default="nixl", choices=("nixl", "example"))
        parser.add_argument("--lengths", default="256,1024", help="tokens of the cold prompts")
        parser.add_argument("--answer", type=int, default=16)
        parser.add_argument("--repeats", type=int, default=3)
        parser.add_argument("--writers", type=int, default=0, help="who write while prompts come; 0 leaves this out")
        parser.add_argument("--mixed-answer", type=int, default=64)
        parser.add_argument("--mixed-prompt", type=int, default=512)
        parser.add_argument("--every", type=float, default=1.0, help="seconds between two prompts of these")
        parser.add_argument("--turns", type=int, default=5, help="of the conversations; 0 leaves them out")
        parser.add_argument("--threads", type=int, default=4, help="conversations")
        parser.add_argument("--new", type=int, default=48, help="tokens that come new with each turn")
        parser.add_argument("--turn-answer", type=int, default=48)
        parser.add_argument(
            "--block", type=int, default=0, help="tokens of a block of the KV cache; 0 for vLLM's choice"
        )
        parser.add_argument("--kv-gib", type=float, default=0.5)
        parser.add_argument(
            "--kept-seconds",
            type=int,
            default=60,
            help="how long the writing engine keeps an answer's KV; in the last five it is not fetched any more",
        )
        parser.add_argument("--eager", action="store_true")
        parser.add_argument("--output", type=Path)
        words = sys.argv[1:] if arguments is None else arguments
        given = parser.parse_args(words)
        if given.turns and given.connector == "nixl" and given.kept_seconds <= KV_BACK_MARGIN:
            parser.error(f"--kept-seconds {given.kept_seconds}: give more than {KV_BACK_MARGIN:g}")
        return cls(command=" ".join([_PROGRAM, *words]), **vars(given))
