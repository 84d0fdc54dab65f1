"""What a page shows, as rows for other programs: CSV and JSON, by the same address and filters as the page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixquant_agents.dashboard.query import EVERYTHING, link, page_filter, threads_asked
from mixquant_agents.errors import RequestError
from mixquant_agents.records import COUNTS, TIMES
from mixquant_agents.telemetry.analysis.overview import overview
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["FORMATS", "MOST_THREADS", "TABLES", "export_links", "exported", "policy_rows", "thread_rows", "turn_rows"]

MOST_THREADS = 10_000
"""Most threads of one export, the first of the list."""

Row = Mapping[str, Any]


def policy_rows(store: TurnStore, query: Mapping[str, str]) -> list[Row]:
    """The overview's comparison: a row for each policy. Times in seconds, shares in 0..1; ``None`` where nothing is
    known.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    turn_filter, _ = page_filter(store, query)
    rows: list[Row] = []
    for entry in overview(store, turn_filter).policies:
        figures, saved = entry.figures, entry.saved
        percentiles = {
            f"{time.name}_{name}_seconds": value
            for time in SUMMARIZED
            for name, value in zip(("p50", "p95"), figures.percentiles[time.name], strict=True)
        }
        rows.append(
            {
                "policy": entry.policy,
                "emulated": entry.emulated,
                "turns": figures.turns,
                "failed": figures.failed,
                "aborted": figures.aborted,
                **percentiles,
                "percentiles_exact": figures.exact,
                "prefill_tokens_per_second": figures.prefill_tokens_per_second,
                "decode_tokens_per_second": figures.decode_tokens_per_second,
                "cache_hit_share": figures.cache_hit_share,
                "quantized_share": figures.quantized_share,
                "score": entry.score,
                "scored_threads": entry.scored,
                **{count.field: figures.tokens[count.name] for count in COUNTS},
                "reading_saved_seconds": saved.seconds if saved is not None else None,
                "reading_exact_seconds": saved.baseline_seconds if saved is not None else None,
                "reading_compared_turns": saved.turns if saved is not None else None,
                "reading_not_compared": entry.no_saving,
            }
        )
    return rows


def thread_rows(store: TurnStore, query: Mapping[str, str]) -> list[Row]:
    """The list of threads, all its pages.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    turn_filter, _ = page_filter(store, query, EVERYTHING)
    threads = store.threads(turn_filter, limit=MOST_THREADS, **threads_asked(query))
    return [
        {
            "thread_id": thread.thread_id,
            "first_at": thread.first_at,
            "last_at": thread.last_at,
            "policies": list(thread.policies),
            "models": list(thread.models),
            "turns": thread.turns,
            "failed_or_aborted": thread.bad,
            "failed_tools": thread.failed_tools,
            "failed_runs": thread.failed_runs,
            "prompt_tokens": thread.prompt_tokens,
            "cached_tokens": thread.cached_tokens,
            "decode_tokens": thread.decode_tokens,
            "total_seconds": thread.total_seconds,
            "first_question": thread.question,
            "score": thread.score,
        }
        for thread in threads
    ]


def turn_rows(store: TurnStore, query: Mapping[str, str]) -> list[Row]:
    """All turns of the thread ``id``, in the order of time. Messages are left out.

    Raises:
        RequestError: no thread is named.
    """
    thread = query.get("id")
    if not thread:
        raise RequestError("name a thread: ?id=…; the list of threads links to each")
    return [_turn_row(turn) for turn in store.thread(thread, limit=-1)]


def _turn_row(turn: StoredTurn) -> Row:
    return {
        "turn_id": turn.turn_id,
        "thread_id": turn.thread_id,
        "run_id": turn.root_run_id,
        "turn_index": turn.turn_index,
        "node": turn.node,
        "agent_id": turn.agent_id,
        "started_at": turn.started_at,
        "model": turn.model,
        "engine": turn.engine,
        "device": turn.device,
        "policy": turn.policy,
        "prefill_format": turn.prefill_format,
        "decode_format": turn.decode_format,
        "emulated": turn.emulated,
        **{count.field: getattr(turn, count.field) for count in COUNTS},
        **{time.field: getattr(turn, time.field) for time in TIMES},
        "tool_seconds_before": turn.tool_seconds_before,
        "timing_source": turn.timing_source,
        "tool_calls": list(turn.tool_calls),
        "finish_reason": turn.finish_reason,
        "aborted": turn.aborted,
        "error": turn.error,
    }


TABLES: Mapping[str, Callable[[TurnStore, Mapping[str, str]], list[Row]]] = {
    "policies": policy_rows,
    "threads": thread_rows,
    "turns": turn_rows,
}
"""What can be exported, by the name in the address."""


def _as_json(rows: Sequence[Row]) -> str:
    return json.dumps([{name: _finite(value) for name, value in row.items()} for row in rows], indent=1) + "\n"


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


FORMATS: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "csv": ("text/csv; charset=utf-8", _as_csv),
    "json": ("application/json", _as_json),
}
"""Media type and writer by the ending of the address."""


def _finite(value: Any) -> Any:
    """JSON has no word for an endless time."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    """A cell of a CSV file; empty where nothing is known. Names come from models and users: one that a spreadsheet
    would compute gets an apostrophe before it."""
    if isinstance(value, list):
        value = "; ".join(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return _finite(value)


def export_links(table: str, query: Mapping[str, str]) -> list[tuple[str, str]]:
    """``(name, address)`` of a table in each format, under the filters of a page."""
    kept = {name: value for name, value in query.items() if name not in ("offset", "turn", "show")}
    return [(ending.upper(), link(f"/export/{table}.{ending}", kept)) for ending in FORMATS]


def exported(store: TurnStore, table: str, ending: str, query: Mapping[str, str]) -> tuple[bytes, str]:
    """``(content, media type)`` of a table.

    Args:
        table: a name of :data:`TABLES`.
        ending: a name of :data:`FORMATS`.
        query: the page's own parameters.

    Raises:
        RequestError: no such table or format, or a parameter is not what its name asks for.
        StoreError: the store cannot be read.
    """
    for name, known, kind in ((table, TABLES, "table"), (ending, FORMATS, "format")):
        if name not in known:
            raise RequestError(f"no {kind} is called {name!r}; choose one of {', '.join(known)}")
    media_type, write = FORMATS[ending]
    # What was recorded may hold half of a surrogate pair, which UTF-8 has no bytes for.
    return write(TABLES[table](store, query)).encode("utf-8", "backslashreplace"), media_type
