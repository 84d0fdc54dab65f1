"""Threads of a store: which of them a page shows, in which order, and what their turns add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixquant_agents.telemetry.events import SpanKind
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import Series, ThreadSummary
from mixquant_agents.telemetry.store.questions import fold
from mixquant_agents.telemetry.store.rows import UNREADABLE, finite_score, from_microseconds, number, text, whole_number
from mixquant_agents.telemetry.store.schema import FAILED_SPANS

__all__ = ["THREAD_ORDERS", "ThreadPage", "thread_summaries"]

_FAILED_TOOLS = f"{FAILED_SPANS} AND kind IN ('{SpanKind.TOOL.value}', '{SpanKind.RETRIEVAL.value}')"
_FAILED_RUNS = f"{FAILED_SPANS} AND kind = '{SpanKind.AGENT.value}' AND parent_id IS NULL"

THREAD_ORDERS = {
    "last": "max(last_us)",
    "first": "min(first_us)",
    "question": "(SELECT folded FROM questions WHERE questions.thread_id = thread_stats.thread_id)",
    "turns": "total(turns)",
    "prompt": "total(prompt_tokens)",
    "cached": "total(cached_tokens) / nullif(total(prompt_tokens), 0)",
    "decode": "total(decode_tokens)",
    "seconds": "total(total_seconds)",
    # Turns that went wrong weigh more than any number of tools.
    "bad": f"total(bad) * 1e6 + (SELECT count(*) FROM spans WHERE spans.thread_id = thread_stats.thread_id AND {FAILED_SPANS})",  # noqa: S608, E501 # constants
    "score": "(SELECT avg(score) FROM scores WHERE scores.thread_id = thread_stats.thread_id)",
}
"""What threads can be ordered by, as SQL over the rows of a thread in ``thread_stats``."""

BOUND_VALUES = 10_000
"""Most threads that one statement names: SQLite binds 32,766 values at most."""


@dataclass(frozen=True, slots=True)
class ThreadPage:
    """Which part of the threads: ``limit`` of them behind ``offset``, by a name of :data:`THREAD_ORDERS`."""

    order: str
    descending: bool
    limit: int
    offset: int


@dataclass(slots=True)
class _Conditions:
    """SQL conditions of constants, and the values bound to them."""

    parts: list[str] = field(default_factory=lambda: ["1"])
    values: list[object] = field(default_factory=list)

    def add(self, part: str, *values: object) -> None:
        self.parts.append(part)
        self.values += values

    def __str__(self) -> str:
        return " AND ".join(self.parts)


def thread_summaries(
    connection: sqlite3.Connection,
    turn_filter: TurnFilter,
    series_ids: Sequence[int] | None,
    read_series: Callable[[], Sequence[Series]],
    *,
    search: str | None,
    failed_tools: bool,
    page: ThreadPage,
) -> list[ThreadSummary]:
    """The threads of ``page``, summed over the rows that ``turn_filter`` chooses.

    Args:
        series_ids: the chosen series; ``None``: all.
        read_series: reads all series; called behind the rows, so that none of theirs is missing.
        search: a part of the thread's name or of its first question, in any case.
        failed_tools: only threads in which a tool failed.
    """
    summed = _summed_rows(turn_filter, series_ids)
    chosen = _chosen_threads(summed, turn_filter, search, failed_tools)
    threads = _page_of_threads(connection, chosen, summed, page)
    rows: dict[str, list[sqlite3.Row]] = {thread: [] for thread in threads}
    beside: dict[str, dict[str, Any]] = {thread: {} for thread in threads}
    for begin in range(0, len(threads), BOUND_VALUES):
        part = threads[begin : begin + BOUND_VALUES]
        among = f"thread_id IN ({', '.join('?' * len(part))})"
        sums = f"SELECT * FROM thread_stats WHERE {summed} AND {among} ORDER BY last_us DESC"  # noqa: S608 # constants
        for row in connection.execute(sums, (*summed.values, *part)):
            rows[row["thread_id"]].append(row)
        first_questions = f"SELECT thread_id, question FROM questions WHERE {among}"  # noqa: S608 # constants
        for thread, question in connection.execute(first_questions, part):
            beside[thread]["question"] = text(question)
        means = f"SELECT thread_id, avg(score) FROM scores WHERE {among} GROUP BY thread_id"  # noqa: S608 # constants
        for thread, score in connection.execute(means, part):
            beside[thread]["score"] = finite_score(score)
        failures = (
            f"SELECT thread_id, total({_FAILED_TOOLS}), total({_FAILED_RUNS}) FROM spans "  # noqa: S608 # constants
            f"WHERE {FAILED_SPANS} AND {among} GROUP BY thread_id"
        )
        for thread, tools, runs in connection.execute(failures, part):
            beside[thread] |= {"failed_tools": int(tools), "failed_runs": int(runs)}
        bad = [thread for thread in part if any(whole_number(row["bad"]) for row in rows[thread])]
        failed_turns = (
            f"SELECT thread_id, count(*) FROM turns WHERE {_within(series_ids)} AND error IS NOT NULL "  # noqa: S608 # constants
            f"AND thread_id IN ({', '.join('?' * len(bad))}) GROUP BY thread_id"
        )
        for thread, turns in connection.execute(failed_turns, (*(series_ids or ()), *bad)):
            beside[thread]["failed_turns"] = turns
    series = {entry.id: entry for entry in read_series()}
    return [
        replace(_summary(thread, thread_rows, series), **beside[thread])
        for thread, thread_rows in rows.items()
        if thread_rows
    ]


def _within(series_ids: Sequence[int] | None) -> str:
    """The condition that a row is of one of these series, whose ids are bound to it."""
    return "1" if series_ids is None else f"series_id IN ({', '.join('?' * len(series_ids))})"


def _summed_rows(turn_filter: TurnFilter, series_ids: Sequence[int] | None) -> _Conditions:
    """Which rows of ``thread_stats`` a thread's sums cover."""
    conditions = _Conditions()
    if series_ids is not None:
        conditions.add(_within(series_ids), *series_ids)
    if turn_filter.status is not None:
        conditions.add("bad = 0" if turn_filter.status == "ok" else "bad > 0")
    return conditions


def _chosen_threads(
    summed: _Conditions, turn_filter: TurnFilter, search: str | None, failed_tools: bool
) -> _Conditions:
    """Which rows make their thread appear: of the summed ones."""
    conditions = _Conditions([*summed.parts], [*summed.values])
    if turn_filter.since_us is not None:
        conditions.add("last_us >= ?", turn_filter.since_us)
    if turn_filter.until_us is not None:
        conditions.add("first_us < ?", turn_filter.until_us)
    if turn_filter.thread is not None:
        conditions.add("thread_id = ?", turn_filter.thread)
    if search:
        conditions.add(
            "(instr(lower(thread_id), lower(?)) > 0 OR "
            "thread_id IN (SELECT thread_id FROM questions WHERE instr(folded, ?) > 0))",
            search,
            fold(search),
        )
    if failed_tools:
        conditions.add(f"thread_id IN (SELECT thread_id FROM spans WHERE {_FAILED_TOOLS})")  # noqa: S608 # constants
    return conditions


def _page_of_threads(
    connection: sqlite3.Connection, chosen: _Conditions, summed: _Conditions, page: ThreadPage
) -> list[str]:
    if page.order == "last" and page.descending:
        return _newest_threads(connection, chosen, page)
    key, direction = THREAD_ORDERS[page.order], "DESC" if page.descending else "ASC"
    threads = f"SELECT thread_id FROM thread_stats WHERE {chosen}"  # noqa: S608 # constants
    query = (
        f"SELECT thread_id FROM thread_stats WHERE {summed} AND thread_id IN ({threads}) "  # noqa: S608 # constants
        f"GROUP BY thread_id ORDER BY {key} {direction} NULLS LAST, max(last_us) DESC LIMIT ? OFFSET ?"
    )
    values = (*summed.values, *chosen.values, page.limit, page.offset)
    return [row[0] for row in connection.execute(query, values)]


def _newest_threads(connection: sqlite3.Connection, chosen: _Conditions, page: ThreadPage) -> list[str]:
    """Threads by their last turn, the newest first: the index gives them in that order."""
    query = f"SELECT thread_id FROM thread_stats WHERE {chosen} ORDER BY last_us DESC LIMIT ?"  # noqa: S608 # constants
    end = page.offset + page.limit
    window = end * 3 + 50
    while True:  # a thread has one row per series, so it takes more rows than threads
        rows = [row[0] for row in connection.execute(query, (*chosen.values, window))]
        threads = list(dict.fromkeys(rows))
        if len(threads) >= end or len(rows) < window:
            return threads[page.offset : end]
        window *= 4


def _summary(thread: str, rows: Sequence[sqlite3.Row], series: Mapping[int, Series]) -> ThreadSummary:
    def known(column: str) -> list[int]:
        return [value for row in rows if (value := whole_number(row[column])) is not None]

    entries = [series[row["series_id"]] for row in rows if row["series_id"] in series]
    return ThreadSummary(
        thread_id=text(thread) or UNREADABLE,
        turns=sum(known("turns")),
        bad=sum(known("bad")),
        first_at=from_microseconds(min(known("first_us"), default=0)),
        last_at=from_microseconds(max(known("last_us"), default=0)),
        prompt_tokens=sum(known("prompt_tokens")),
        cached_tokens=sum(known("cached_tokens")),
        decode_tokens=sum(known("decode_tokens")),
        total_seconds=sum(number(row["total_seconds"]) or 0.0 for row in rows),
        policies=tuple(dict.fromkeys(entry.policy for entry in entries)),
        models=tuple(dict.fromkeys(entry.model for entry in entries)),
    )
