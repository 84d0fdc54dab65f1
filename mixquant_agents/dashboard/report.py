"""Reports: a thread or a comparison as one self-contained HTML file (no script, nothing fetched, fit to be mailed), and
plots beside it. :func:`write_report` is what ``mixquant report`` does."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mixquant_agents._version import __version__
from mixquant_agents.dashboard.compare import comparison_charts, comparison_rows
from mixquant_agents.dashboard.plots import plot_comparison, plot_thread
from mixquant_agents.dashboard.templates import render
from mixquant_agents.dashboard.timeline import PARTS, waterfall
from mixquant_agents.dashboard.turn_page import answers, turn_detail
from mixquant_agents.dashboard.views import thread_summary
from mixquant_agents.errors import RequestError
from mixquant_agents.files import write_whole
from mixquant_agents.records import utc_now
from mixquant_agents.telemetry.analysis.overview import Comparison, compare
from mixquant_agents.telemetry.events import error_class
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["comparison_report", "side_name", "thread_report", "write_report"]

SHEET = Path(__file__).parent / "static" / "app.css"


def thread_report(store: TurnStore, thread: str, *, content: bool = False) -> str:
    """The thread's page with every turn in full.

    Args:
        content: write messages, tool calls, what errors say and the text around prefix misses too, where they were
            recorded. Off by default: a report is made to be passed on.

    Raises:
        RequestError: the store holds no such thread.
    """
    turns = store.thread(thread, limit=-1)  # all of them
    if not turns:
        raise RequestError(f"the store holds no thread {thread!r}; 'mixquant dashboard' lists the threads there are")
    spans = store.spans(thread=thread, limit=-1)
    if not content:  # a message may quote what the model or the tool was working on
        turns = [turn.model_copy(update={"error": turn.error and error_class(turn.error)}) for turn in turns]
        spans = [replace(span, error=span.error and error_class(span.error)) for span in spans]
    page = render(
        "thread",
        live=False,
        opened=content,
        thread=thread,
        question=store.question(thread) if content else None,
        turns=turns,
        policies=list(dict.fromkeys(turn.policy for turn in turns)),
        models=list(dict.fromkeys(turn.model for turn in turns)),
        fall=waterfall(turns, spans),
        summary=thread_summary(store, thread),
        parts=PARTS,
        answers=answers(store, turns) if content else {},
        current=None,
        detail=None,
        turn_link=_anchor,
        more=None,
        export_links=None,
    )
    details = [(_anchor(turn)[1:], turn_detail(store, turn, content=content)) for turn in turns]
    return _whole(f"Thread {thread}", page, details)


def comparison_report(store: TurnStore, a: TurnFilter, b: TurnFilter) -> tuple[str, Comparison]:
    """The comparison's page, and its figures.

    Raises:
        RequestError: one side holds no turn.
    """
    seen = compare(store, a, b)
    for name, side, turn_filter in (("A", seen.a, a), ("B", seen.b, b)):
        if not side.turns:
            known = ", ".join(sorted({entry.policy for entry in store.series()})) or "none yet"
            raise RequestError(f"{name} ({side_name(turn_filter)}) holds no turn; the store has turns of: {known}")
    names = (f"A {side_name(a)}", f"B {side_name(b)}")
    page = render("comparison", seen=seen, rows=comparison_rows(seen), charts=comparison_charts(seen, names))
    heading = render("heading", title=f"{names[0]} against {names[1]}")
    return _whole(f"{names[0]} against {names[1]}", heading + page, []), seen


def side_name(turn_filter: TurnFilter) -> str:
    """What a side of a comparison is called."""
    run = f"run {turn_filter.run}" if turn_filter.run else None
    return " ".join(filter(None, (turn_filter.policy, turn_filter.model, run))) or "all policies"


def _anchor(turn: StoredTurn) -> str:
    return f"#turn-{turn.number}"


def _whole(title: str, page: Markup, details: list[tuple[str, Markup]]) -> str:
    sheet = SHEET.read_text(encoding="utf-8")
    dark = re.search(r':root\[data-theme="dark"\] (\{.*?\n\})', sheet, re.DOTALL)
    if dark is None:  # pragma: no cover - a test renders the dark report
        raise AssertionError
    sheet += f"@media (prefers-color-scheme: dark) {{ :root {dark[1]} }}"
    made = render(
        "report",
        title=title,
        sheet=Markup(sheet),  # noqa: S704 # our own file
        page=page,
        details=details,
        now=utc_now(),
        version=__version__,
    )
    return str(made)


PLOTTED = 100
"""Most turns in a picture."""


def write_report(
    store: Path | None,
    out: Path,
    *,
    thread: str | None = None,
    policies: str | None = None,
    runs: str | None = None,
    model: str | None = None,
    since: str | None = None,
    plots: Path | None = None,
    content: bool = False,
) -> dict[str, Any]:
    """Write the report; ``{"report": "thread" | "comparison", "files": […], …}``.

    Raises:
        RequestError: the options contradict each other, or name what the store does not hold.
        StoreError: the store cannot be read.
        ConfigError: the report cannot be written.
    """
    if sum(value is not None for value in (thread, policies, runs)) > 1:
        raise RequestError("--thread, --compare and --runs exclude each other; give one of them")
    if policies is None and runs is None and (model is not None or since is not None):
        raise RequestError("--model and --since choose turns for --compare and --runs; a thread is reported as a whole")
    with TurnStore(store) as turns:
        if policies is not None or runs is not None:
            sides = _sides(policies, runs, model, since)
            page, seen = comparison_report(turns, *sides)
            made: dict[str, Any] = {"report": "comparison", "a": asdict(seen.a), "b": asdict(seen.b)}
            made |= {"prefill_speed_up": seen.prefill_speed_up, "note": seen.note}
            names = (f"A {side_name(sides[0])}", f"B {side_name(sides[1])}")
            files = [] if plots is None else plot_comparison(seen, names, plots / "comparison")
        else:
            thread = thread or _newest(turns)
            page = thread_report(turns, thread, content=content)
            fall = waterfall(turns.thread(thread, limit=-1), turns.spans(thread=thread, limit=-1))
            made = {"report": "thread", "thread": thread, "seconds": fall.totals}
            safe = re.sub(r"[^\w.-]+", "_", thread)[:80] or "thread"
            files = [] if plots is None else _plot(turns, thread, plots / f"thread-{safe}")
    write_whole(out, page)
    return {**made, "files": [str(out), *map(str, files)]}


def _sides(
    policies: str | None, runs: str | None, model: str | None, since: str | None
) -> tuple[TurnFilter, TurnFilter]:
    names = [name.strip() for name in (policies or runs or "").split(",")]
    if len(names) != 2 or not all(names):
        option = "--compare" if policies is not None else "--runs"
        raise RequestError(f"{option} needs two names, A,B, not {policies or runs!r}")
    if policies is not None:
        first, second = (TurnFilter(policy=name, model=model, since=since) for name in names)
    else:
        first, second = (TurnFilter(run=name, model=model, since=since) for name in names)
    return first, second


def _plot(store: TurnStore, thread: str, stem: Path) -> list[Path]:
    """A picture of a thread's newest turns: of thousands it would be taller than any picture may be."""
    turns = store.thread(thread, limit=PLOTTED)
    title = thread if len(turns) < PLOTTED else f"{thread}, its newest {PLOTTED} turns"
    return plot_thread(waterfall(turns, store.spans(thread=thread)), title, stem)


def _newest(store: TurnStore) -> str:
    threads = store.threads(limit=1)
    if not threads:
        raise RequestError("the store holds no thread; run a graph with a thread_id, or use --compare")
    return threads[0].thread_id
