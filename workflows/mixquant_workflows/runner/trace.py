"""Recorded threads, replayed by their lengths: what would each policy do on *your* traffic?

Three formats: a turn store of this library (SQLite), Mooncake's JSONL (``input_length``, ``output_length``,
``hash_ids`` of 512-token blocks; one line is one request, ``session_id`` joins them), and AIPerf's multi-turn JSONL
(``session_id`` and ``turns`` with ``text`` or ``input_length``). What was said is not needed: prompts are made of
pseudo-random tokens that share beginnings exactly as far as the recorded ones did, and answers are as long as the
recorded ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixquant_agents import TurnStore
from mixquant_agents.errors import ConfigError

__all__ = ["TraceTurn", "fitting", "read_trace"]

_MOONCAKE_BLOCK = 512
_WORDS_TO_TOKENS = 1.4
_DEFAULT_ANSWER = 64


@dataclass(frozen=True, slots=True)
class TraceTurn:
    """One request of a thread.

    Attributes:
        prompt: which tokens the prompt has, as runs: ``(stream, begin, end)`` is that part of the endless pseudo-random
            stream of that name. Equal runs are equal tokens.
        answer_tokens: how many tokens are to be written.
    """

    prompt: tuple[tuple[str, int, int], ...]
    answer_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(end - begin for _, begin, end in self.prompt)

    def tokens(self) -> list[int]:
        """The prompt as token ids: 100 to 9,999, which are ordinary tokens in every usual vocabulary."""
        return [token for name, begin, end in self.prompt for token in _stream(name, begin, end)]


def _stream(name: str, begin: int, end: int) -> list[int]:
    """Blocks of 64 tokens, each drawn from its own seed, so that any part of a stream costs only its length."""
    prompt: list[int] = []
    for block in range(begin // 64, -(-end // 64)):
        draw = random.Random(f"{name}/{block}")  # noqa: S311 - the same tokens in every run
        tokens = [draw.randrange(100, 10_000) for _ in range(64)]
        prompt += tokens[max(0, begin - 64 * block) : end - 64 * block]
    return prompt


def read_trace(path: Path, limit: int | None = None) -> list[list[TraceTurn]]:
    """The threads of a trace, each a list of turns, in order.

    Args:
        limit: first so many threads only.

    Raises:
        ConfigError: no such file, or none of the three formats.
    """
    if not path.is_file():
        raise ConfigError(f"there is no trace file {str(path)!r}")
    with path.open("rb") as file:
        if file.read(15) == b"SQLite format 3":
            return _from_store(path, limit)
    rows: list[Any] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{path}, line {number}: not JSON ({error.msg}); a trace is a turn store or JSONL"
            ) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} holds no requests")
    threads = _from_mooncake(path, rows) if "input_length" in rows[0] else _from_aiperf(path, rows)
    return threads[:limit]


def _from_store(path: Path, limit: int | None) -> list[list[TraceTurn]]:
    """Turns of a store, thread by thread. A turn's cached tokens are those it shares with the prompt before it (or, for
    the first turn of a thread, with all threads)."""
    threads: list[list[TraceTurn]] = []
    with TurnStore(path) as store:
        for summary in store.threads(limit=limit or 1_000):
            turns: list[TraceTurn] = []
            before: tuple[tuple[str, int, int], ...] = (("shared", 0, 1_000_000),)
            for number, record in enumerate(store.thread(summary.thread_id)):
                if not record.prompt_tokens or not record.decode_tokens:
                    continue
                shared = _first(before, record.cached_tokens or 0)
                cached = sum(end - begin for _, begin, end in shared)
                prompt = (*shared, (f"{summary.thread_id}/{number}", 0, record.prompt_tokens - cached))
                turns.append(TraceTurn(prompt, record.decode_tokens))
                before = prompt
            if turns:
                threads.append(turns)
    if not threads:
        raise ConfigError(f"{path} holds no turns with known token counts")
    return threads


def _first(runs: Sequence[tuple[str, int, int]], count: int) -> tuple[tuple[str, int, int], ...]:
    """The first ``count`` tokens of a prompt."""
    taken: list[tuple[str, int, int]] = []
    for name, begin, end in runs:
        if count <= 0:
            break
        taken.append((name, begin, min(end, begin + count)))
        count -= taken[-1][2] - begin
    return tuple(taken)


def _from_mooncake(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    threads: dict[str, list[TraceTurn]] = {}
    for number, row in enumerate(rows):
        try:
            length, answer = int(row["input_length"]), max(1, int(row.get("output_length") or _DEFAULT_ANSWER))
            blocks = [str(block) for block in row.get("hash_ids") or ()]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}, request {number + 1}: {error!r}; Mooncake lines need input_length") from error
        hashed = ((block, index * _MOONCAKE_BLOCK) for index, block in enumerate(blocks))
        runs = [(block, 0, min(_MOONCAKE_BLOCK, length - begin)) for block, begin in hashed if begin < length]
        rest = length - sum(end for _, _, end in runs)  # tokens without a hash are this request's own
        runs += [(f"own-{number}", 0, rest)] if rest else []
        threads.setdefault(str(row.get("session_id", f"line-{number}")), []).append(TraceTurn(tuple(runs), answer))
    return list(threads.values())


def _from_aiperf(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    """Each turn's prompt is the whole dialogue before it, with the answers, and its own text."""
    threads: list[list[TraceTurn]] = []
    for number, row in enumerate(rows):
        turns = row.get("turns") or ([row] if "text" in row else None)
        if not isinstance(turns, list):
            raise ConfigError(f"{path}, line {number + 1}: neither input_length (Mooncake) nor turns or text (AIPerf)")
        name, length, thread = str(row.get("session_id", f"line-{number}")), 0, []
        for turn in turns:
            text = turn if isinstance(turn, str) else turn.get("text") or ""
            words = turn.get("input_length") if isinstance(turn, dict) else None
            answer = int((turn.get("output_length") if isinstance(turn, dict) else 0) or _DEFAULT_ANSWER)
            length += int(words or max(1, round(len(str(text).split()) * _WORDS_TO_TOKENS)))
            thread.append(TraceTurn(((name, 0, length),), answer))
            length += answer
        threads.append(thread)
    return threads


def fitting(threads: Sequence[Sequence[TraceTurn]], window: int) -> tuple[list[list[TraceTurn]], int]:
    """The turns that fit a context window, and how many do not."""
    kept = [[turn for turn in thread if turn.prompt_tokens + turn.answer_tokens <= window] for thread in threads]
    left_out = sum(map(len, threads)) - sum(map(len, kept))
    return [thread for thread in kept if thread], left_out
