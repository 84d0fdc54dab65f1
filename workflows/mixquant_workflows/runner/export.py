"""Recorded threads for other programs: Mooncake's and AIPerf's JSONL, without a word of what was said unless asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mixquant_agents import TurnStore
from mixquant_agents.cli.output import write_whole
from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.trace import MOONCAKE_BLOCK, TraceTurn, read_trace

__all__ = ["TraceFormat", "aiperf_rows", "export_trace", "message_rows", "mooncake_rows"]

TraceFormat = Literal["mooncake", "aiperf"]


def export_trace(
    store: Path,
    output: Path,
    form: TraceFormat,
    *,
    limit: int | None = None,
    content: bool = False,
) -> dict[str, Any]:
    """Write the threads of ``store`` as one JSONL file.

    Args:
        store: a turn store, or any trace that :func:`~mixquant_workflows.runner.trace.read_trace` reads.
        form: ``mooncake``: one line a request, by time, with lengths and hashes of 512-token blocks. ``aiperf``:
            sessions for AIPerf, with each prompt as token ids of the right number and the right shared beginnings.
        limit: the newest so many threads.
        content: ``aiperf`` with the messages that were said instead; only of turns whose content was recorded.

    Returns:
        ``{"threads", "turns", "file"}``.

    Raises:
        ConfigError: there is nothing to write, or content was asked for in a format that has no place for it.
    """
    if content and form != "aiperf":
        raise ConfigError(f"--content: the format {form!r} has lengths alone; take --format aiperf")
    threads = read_trace(store, limit)
    if content:
        rows = list(message_rows(store, threads))
        if not rows:
            raise ConfigError(f"{store} holds no recorded content; record with content=True, or leave --content out")
    else:
        rows = list(mooncake_rows(threads) if form == "mooncake" else aiperf_rows(threads))
    write_whole(output, "".join(_line(row) for row in rows))
    names = {row.get("session_id") or row.get("thread_id") for row in rows}
    return {"threads": len(names), "turns": len(rows), "file": str(output)}


def _line(row: dict[str, Any]) -> str:
    """A row as a line. What was said may hold numbers that JSON has no word for."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        row = json.loads(json.dumps(row), parse_constant=lambda _: None)
        text = json.dumps(row, ensure_ascii=False)
    return text + "\n"


def mooncake_rows(threads: Iterable[Sequence[TraceTurn]]) -> Iterator[dict[str, Any]]:
    """One request a line, in the order of time. Equal ``hash_ids`` are equal beginnings; ``thread_id`` is ours, and
    other readers leave it alone."""
    ids: dict[tuple[tuple[str, int, int], ...], int] = {}
    turns = [turn for thread in threads for turn in thread]
    for turn in sorted(turns, key=lambda turn: turn.start_seconds or 0.0):
        ends = range(MOONCAKE_BLOCK, turn.prompt_tokens + MOONCAKE_BLOCK, MOONCAKE_BLOCK)
        yield {
            "timestamp": round((turn.start_seconds or 0.0) * 1e3),
            "input_length": turn.prompt_tokens,
            "output_length": turn.answer_tokens,
            "hash_ids": [ids.setdefault(turn.beginning(end), len(ids)) for end in ends],
            "thread_id": turn.thread,
            **_delay(turn),
        }


def aiperf_rows(threads: Iterable[Sequence[TraceTurn]]) -> Iterator[dict[str, Any]]:
    """Sessions whose requests are written out for a completions endpoint (``--custom-dataset-type mooncake_trace
    --endpoint-type completions``): the prompt's length and shared beginnings are then the recorded ones exactly, which
    a chat template would change."""
    for thread in threads:
        for turn in thread:
            yield {
                "session_id": turn.thread,
                "output_length": turn.answer_tokens,
                "payload": {
                    "prompt": turn.tokens(),
                    "max_tokens": turn.answer_tokens,
                    "min_tokens": turn.answer_tokens,
                    "ignore_eos": True,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
                **_delay(turn),
            }


def message_rows(store: Path, threads: Iterable[Sequence[TraceTurn]]) -> Iterator[dict[str, Any]]:
    """Sessions with the messages that were said, for a chat endpoint."""
    with TurnStore(store) as turns:
        for thread in threads:
            for turn in thread:
                record = turns.turn(turn.turn_id) if turn.turn_id is not None else None
                content = turns.content(record) if record is not None else None
                if content is None or not content.messages:
                    continue
                yield {
                    "session_id": turn.thread,
                    "messages": [dict(message) for message in content.messages],
                    "output_length": turn.answer_tokens,
                    **_delay(turn),
                }


def _delay(turn: TraceTurn) -> dict[str, float]:
    return {} if turn.gap_seconds is None else {"delay": round(turn.gap_seconds * 1e3, 3)}
