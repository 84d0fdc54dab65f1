"""A thread or a comparison as one self-contained HTML file: no script, nothing fetched, fit to be mailed."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from mixquant_agents._version import __version__
from mixquant_agents.dashboard.compare import comparison_charts, comparison_rows
from mixquant_agents.dashboard.templates import render
from mixquant_agents.dashboard.timeline import PARTS, waterfall
from mixquant_agents.dashboard.turn_page import turn_detail
from mixquant_agents.errors import RequestError
from mixquant_agents.records import utc_now
from mixquant_agents.telemetry.analysis.overview import Comparison, compare
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["comparison_report", "side_name", "thread_report"]

SHEET = Path(__file__).parent / "static" / "app.css"


def thread_report(store: TurnStore, thread: str, *, content: bool = False) -> str:
    """The thread's page with every turn in full.

    Args:
        content: write messages, tool calls and the text around prefix misses too, where they were recorded. Off by
            default: a report is made to be passed on.

    Raises:
        RequestError: the store holds no such thread.
    """
    turns = store.thread(thread, limit=-1)  # all of them
    if not turns:
        raise RequestError(f"the store holds no thread {thread!r}; 'mixquant dashboard' lists the threads there are")
    page = render(
        "thread",
        live=False,
        thread=thread,
        turns=turns,
        policies=list(dict.fromkeys(turn.policy for turn in turns)),
        models=list(dict.fromkeys(turn.model for turn in turns)),
        fall=waterfall(turns, store.spans(thread=thread, limit=-1)),
        parts=PARTS,
        current=None,
        detail=None,
        turn_link=_anchor,
        more=None,
    )
    details = [(_anchor(turn)[1:], turn_detail(store, turn, content=content)) for turn in turns]
    return _whole(f"Thread {thread}", page, details)


def comparison_report(store: TurnStore, a: TurnFilter, b: TurnFilter) -> tuple[str, Comparison]:
    """The comparison's page, and its figures.

    Raises:
        RequestError: one side holds no turn.
    """
    seen = compare(store, a, b)
    for name, side, chosen in (("A", seen.a, a), ("B", seen.b, b)):
        if not side.turns:
            raise RequestError(f"{name} ({side_name(chosen)}) holds no turn; choose what the store holds")
    names = (f"A {side_name(a)}", f"B {side_name(b)}")
    page = render("comparison", seen=seen, rows=comparison_rows(seen), charts=comparison_charts(seen, names))
    heading = render("heading", title=f"{names[0]} against {names[1]}")
    return _whole(f"{names[0]} against {names[1]}", heading + page, []), seen


def side_name(chosen: TurnFilter) -> str:
    """What a side of a comparison is called."""
    run = f"run {chosen.run}" if chosen.run else None
    return " ".join(filter(None, (chosen.policy, chosen.model, run))) or "all policies"


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
