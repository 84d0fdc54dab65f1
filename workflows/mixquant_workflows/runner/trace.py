"""Recorded threads, replayed by their lengths: what would each policy do on *your* traffic?

Formats: a turn store of this library (SQLite); Mooncake's JSONL (``input_length``, ``output_length``, ``hash_ids`` of
512-token blocks; one line is one request, ``session_id`` or ``thread_id`` joins them); AIPerf's sessions (lines with a
``session_id`` and a prompt of token ids or of messages; lines without ``hash_ids`` are what each turn adds); its
multi-turn JSONL (``session_id`` and ``turns`` with ``text`` or ``input_length``); and its results
(``profile_export.jsonl``), which are a trace again. What was said is not needed: prompts are made of pseudo-random
tokens that share beginnings exactly as far as the recorded ones did, and answers are as long as the recorded ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from mixquant_agents import TurnStore
from mixquant_agents.errors import ConfigError

__all__ = ["MOONCAKE_BLOCK", "TraceTurn", "fitting", "read_trace"]

MOONCAKE_BLOCK = 512
"""Tokens of each hash in Mooncake's format."""
_STORE_BLOCK = 16  # tokens that each hash of a turn store adds
_WORDS_TO_TOKENS = 1.4
_DEFAULT_ANSWER = 64


@dataclass(frozen=True, slots=True)
class TraceTurn:
    """One request of a thread.

    Attributes:
        prompt: which tokens the prompt has, as runs: ``(stream, begin, end)`` is that part of the endless pseudo-random
            stream of that name. Equal runs are equal tokens.
        answer_tokens: how many tokens are to be written.
        start_seconds: when it began, since the trace did; ``None`` where the trace does not say.
        gap_seconds: from the end of the thread's turn before to its beginning: tools, and people.
        thread: the thread's name.
        turn_id: the turn's, where it has one.
    """

    prompt: tuple[tuple[str, int, int], ...]
    answer_tokens: int
    start_seconds: float | None = None
    gap_seconds: float | None = None
    thread: str = ""
    turn_id: str | None = None

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return sum(end - begin for _, begin, end in self.prompt)

    def beginning(self, end: int) -> tuple[tuple[str, int, int], ...]:
        """The runs of its first ``end`` tokens; equal for equal beginnings."""
        return _joined(_first(self.prompt, end))

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
        ConfigError: no such file, or none of the formats.
    """
    if not path.is_file():
        raise ConfigError(f"there is no trace file {str(path)!r}")
    with path.open("rb") as file:
        if file.read(15) == b"SQLite format 3":
            return _from_store(path, limit)
    rows: list[Any] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error}); a trace is a turn store or JSONL") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} holds no requests")
    return _reader(rows[0])(path, rows)[:limit]


def _reader(row: dict[str, Any]) -> Callable[[Path, list[dict[str, Any]]], list[list[TraceTurn]]]:
    """Who reads such rows."""
    if "metadata" in row and "metrics" in row:
        return _from_results
    if "payload" in row or "messages" in row:
        return _from_sessions
    if "input_length" in row:
        return _from_mooncake if "hash_ids" in row or "session_id" not in row else _from_deltas
    return _from_aiperf


def _from_store(path: Path, limit: int | None) -> list[list[TraceTurn]]:
    """Turns of a store, thread by thread. Two prompts share what their recorded hashes share; where there are none, a
    turn's cached tokens are those it shares with the prompt before it (or, for the first of a thread, with all
    threads)."""
    threads: list[list[TraceTurn]] = []
    seen: dict[int, tuple[tuple[str, int, int], ...]] = {}
    with TurnStore(path) as store:
        names = [summary.thread_id for summary in store.threads(limit=limit or 1_000)]
        stored = [(name, store.thread(name, limit=100_000)) for name in names]
        began = min((records[0].started_us for _, records in stored if records), default=0)
        for name, records in stored:
            turns: list[TraceTurn] = []
            before: tuple[tuple[str, int, int], ...] = (("shared", 0, 1_000_000),)
            ended: int | None = None
            for number, record in enumerate(records):
                if not record.prompt_tokens or not record.decode_tokens:
                    continue
                hashes = store.block_hashes(record)
                if hashes is not None:
                    prompt = _by_blocks(hashes, record.prompt_tokens, f"{name}/{number}", seen)
                else:
                    cached = _first(before, record.cached_tokens or 0)
                    prompt = _extended(cached, record.prompt_tokens, f"{name}/{number}")
                begun = record.started_us
                gap = None if ended is None else max(0.0, (begun - ended) / 1e6)
                start = (begun - began) / 1e6
                turns.append(TraceTurn(prompt, record.decode_tokens, start, gap, name, record.turn_id))
                ended = begun + round((record.total_seconds or 0.0) * 1e6)
                before = prompt
            if turns:
                threads.append(turns)
    if not threads:
        raise ConfigError(f"{path} holds no turns with known token counts")
    return threads


def _by_blocks(
    keys: Sequence[int], length: int, own: str, seen: dict[int, tuple[tuple[str, int, int], ...]]
) -> tuple[tuple[str, int, int], ...]:
    """A prompt of ``length`` tokens: the longest beginning that an earlier one has, too, then the stream ``own``.

    Args:
        keys: one for each whole block of 16 tokens; equal keys are equal beginnings.
        seen: the beginning of each key so far; those of this prompt are added.
    """
    prompt = _extended(next((seen[key] for key in reversed(keys) if key in seen), ()), length, own)
    for block, key in enumerate(keys, 1):
        seen.setdefault(key, _first(prompt, block * _STORE_BLOCK))
    return prompt


def _extended(beginning: tuple[tuple[str, int, int], ...], length: int, own: str) -> tuple[tuple[str, int, int], ...]:
    """``beginning``, and the stream ``own`` up to ``length`` tokens."""
    rest = length - sum(end - begin for _, begin, end in beginning)
    return (*beginning, (own, 0, rest)) if rest else beginning


def _first(runs: Sequence[tuple[str, int, int]], count: int) -> tuple[tuple[str, int, int], ...]:
    """The first ``count`` tokens of a prompt."""
    segments: list[tuple[str, int, int]] = []
    for name, begin, end in runs:
        if count <= 0:
            break
        segments.append((name, begin, min(end, begin + count)))
        count -= segments[-1][2] - begin
    return tuple(segments)


def _joined(runs: Iterable[tuple[str, int, int]]) -> tuple[tuple[str, int, int], ...]:
    """Neighbouring runs of one stream as one."""
    joined: list[tuple[str, int, int]] = []
    for name, begin, end in runs:
        if joined and joined[-1][0] == name and joined[-1][2] == begin:
            joined[-1] = (name, joined[-1][1], end)
        else:
            joined.append((name, begin, end))
    return tuple(joined)


def _from_mooncake(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    threads: dict[str, list[TraceTurn]] = {}
    for number, row in enumerate(rows):
        try:
            length = _tokens(path, number, "input_length", row["input_length"], default=0)
            blocks = [str(block) for block in row.get("hash_ids") or ()]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path}, request {number + 1}: {error!r}; Mooncake lines need input_length") from error
        answer = _tokens(path, number, "output_length", row.get("output_length"), default=_DEFAULT_ANSWER)
        hashed = ((block, index * MOONCAKE_BLOCK) for index, block in enumerate(blocks))
        runs = [(block, 0, min(MOONCAKE_BLOCK, length - begin)) for block, begin in hashed if begin < length]
        rest = length - sum(end for _, _, end in runs)  # tokens without a hash are this request's own
        runs += [(f"own-{number}", 0, rest)] if rest else []
        name = str(row.get("session_id") or row.get("thread_id") or f"line-{number}")
        start, gap = _milliseconds(row.get("timestamp")), _milliseconds(row.get("delay"))
        threads.setdefault(name, []).append(TraceTurn(tuple(runs), answer, start, gap, name))
    return list(threads.values())


def _milliseconds(value: Any) -> float | None:
    return value / 1e3 if isinstance(value, int | float) else None


def _tokens(path: Path, number: int, name: str, *counts: Any, default: int) -> int:
    """The first of ``counts`` that is given and not 0, of request ``number`` (from 0).

    Raises:
        ConfigError: it is no number, or below 0.
    """
    count = next((count for count in counts if count), default)
    try:
        tokens = int(count)
    except (TypeError, ValueError, OverflowError):
        tokens = -1
    if tokens < 0 or isinstance(count, bool):
        raise ConfigError(f"{path}, request {number + 1}: {name} is {count!r}; give a number of tokens")
    return tokens


def _from_deltas(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    """AIPerf's sessions by lengths: each line is what its turn adds to the dialogue before it."""
    threads: dict[str, list[TraceTurn]] = {}
    lengths: dict[str, int] = {}
    for number, row in enumerate(rows):
        name = str(row.get("session_id", f"line-{number}"))
        answer = _tokens(path, number, "output_length", row.get("output_length"), default=_DEFAULT_ANSWER)
        added = _tokens(path, number, "input_length", row.get("input_length"), default=0)
        length = lengths.get(name, 0) + added
        start, gap = _milliseconds(row.get("timestamp")), _milliseconds(row.get("delay"))
        threads.setdefault(name, []).append(TraceTurn(((name, 0, length),), answer, start, gap, name))
        lengths[name] = length + answer
    return list(threads.values())


def _from_sessions(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    """Sessions whose prompts are written out. Of token ids the shared beginnings are known; messages are counted by
    their words, and go on from each other."""
    threads: dict[str, list[TraceTurn]] = {}
    seen: dict[int, tuple[tuple[str, int, int], ...]] = {}
    for number, row in enumerate(rows):
        payload = row.get("payload") or {}
        if not isinstance(payload, dict):
            raise ConfigError(f"{path}, request {number + 1}: payload is {payload!r}; give an object")
        name = str(row.get("session_id", f"line-{number}"))
        lengths = row.get("output_length"), payload.get("max_tokens")
        answer = _tokens(path, number, "output_length", *lengths, default=_DEFAULT_ANSWER)
        ids = payload.get("prompt")
        if isinstance(ids, list) and all(isinstance(token, int) for token in ids):
            blocks = (
                hash(tuple(ids[end - _STORE_BLOCK : end])) for end in range(_STORE_BLOCK, len(ids) + 1, _STORE_BLOCK)
            )
            keys = list(accumulate(blocks, lambda before, block: hash((before, block))))
            prompt = _by_blocks(keys, len(ids), f"{name}/{number}", seen)
        else:
            messages = row.get("messages") or payload.get("messages")
            if not isinstance(messages, list):
                raise ConfigError(f"{path}, line {number + 1}: neither token ids nor messages")
            words = len(json.dumps(messages, ensure_ascii=False).split())
            prompt = ((name, 0, max(1, round(words * _WORDS_TO_TOKENS))),)
        start, gap = _milliseconds(row.get("timestamp")), _milliseconds(row.get("delay"))
        threads.setdefault(name, []).append(TraceTurn(prompt, answer, start, gap, name))
    return list(threads.values())


def _from_results(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    """AIPerf's record of each request that it sent: its turns, tokens and gaps as they were measured. It may send a
    conversation more than once: each time is a thread."""
    sessions: dict[tuple[str, str], list[tuple[int, int, int, int, int]]] = {}
    for number, row in enumerate(rows):
        if row.get("error"):
            continue
        try:
            metadata, metrics = row["metadata"], row["metrics"]
            prompt, answer = (
                int(metrics[name]["value"]) for name in ("input_sequence_length", "output_sequence_length")
            )
            sent = str(metadata.get("x_correlation_id") or "")
            name = str(metadata.get("conversation_id") or sent or f"request-{number}")
            start, end = int(metadata["request_start_ns"]), int(metadata["request_end_ns"])
            turn = int(metadata.get("turn_index") or 0)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path}, line {number + 1}: no record of a request ({error!r})") from error
        sessions.setdefault((name, sent), []).append((turn, start, end, prompt, answer))
    first = min((start for turns in sessions.values() for _, start, *_ in turns), default=0)
    threads = []
    for (name, _), turns in sessions.items():
        thread: list[TraceTurn] = []
        ended: int | None = None
        for _, start, end, prompt, answer in sorted(turns):
            gap = None if ended is None else max(0.0, (start - ended) / 1e9)
            thread.append(TraceTurn(((name, 0, prompt),), answer, (start - first) / 1e9, gap, name))
            ended = end
        threads.append(thread)
    return threads


def _from_aiperf(path: Path, rows: Iterable[dict[str, Any]]) -> list[list[TraceTurn]]:
    """Each turn's prompt is the whole dialogue before it, with the answers, and its own text."""
    threads: list[list[TraceTurn]] = []
    for number, row in enumerate(rows):
        turns = row.get("turns") or ([row] if "text" in row else None)
        if not isinstance(turns, list):
            raise ConfigError(f"{path}, line {number + 1}: neither input_length (Mooncake) nor turns or text (AIPerf)")
        name, length, thread = str(row.get("session_id", f"line-{number}")), 0, []
        for turn in turns:
            fields = {"text": turn} if isinstance(turn, str) else turn
            if not isinstance(fields, dict):
                raise ConfigError(f"{path}, line {number + 1}: a turn is {turn!r}; give a text or an object")
            answer = _tokens(path, number, "output_length", fields.get("output_length"), default=_DEFAULT_ANSWER)
            words = max(1, round(len(str(fields.get("text") or "").split()) * _WORDS_TO_TOKENS))
            length += _tokens(path, number, "input_length", fields.get("input_length"), default=words)
            start, gap = _milliseconds(fields.get("timestamp")), _milliseconds(fields.get("delay"))
            thread.append(TraceTurn(((name, 0, length),), answer, start, gap, name))
            length += answer
        threads.append(thread)
    return threads


def fitting(threads: Sequence[Sequence[TraceTurn]], window: int) -> tuple[list[list[TraceTurn]], int]:
    """The turns that fit a context window, and how many do not."""
    kept = [[turn for turn in thread if turn.prompt_tokens + turn.answer_tokens <= window] for thread in threads]
    left_out = sum(map(len, threads)) - sum(map(len, kept))
    return [thread for thread in kept if thread], left_out
