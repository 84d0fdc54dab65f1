"""Pages as HTML fragments: the store's figures through autoescaping templates. Shared by the live pages and the report.

Every function here reads the store and returns markup; none knows of NiceGUI, requests or sockets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mixquant_agents.dashboard import charts, formatting
from mixquant_agents.dashboard.export import export_links
from mixquant_agents.dashboard.policy_charts import policy_charts
from mixquant_agents.dashboard.query import EVERYTHING, FITTING, WINDOWS, link, names_in, page_filter, threads_asked
from mixquant_agents.dashboard.templates import render
from mixquant_agents.dashboard.timeline import PARTS, waterfall
from mixquant_agents.dashboard.turn_page import answers, turn_detail
from mixquant_agents.telemetry.analysis.overview import Overview, overview
from mixquant_agents.telemetry.analysis.speedup import STRATUM_TURNS
from mixquant_agents.telemetry.store.aggregate import MINUTE
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import ThreadSummary
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = [
    "error_page",
    "filters_bar",
    "header",
    "live_state",
    "overview_charts",
    "overview_page",
    "thread_link",
    "thread_page",
    "thread_summary",
    "threads_page",
]  # fmt: skip

PAGE = 50


def thread_link(thread: str, turn: str | None = None) -> str:
    """Address of a thread, and of one of its turns."""
    address = link("/thread", {"id": thread, "turn": turn})
    return f"{address}#detail" if turn else address


def _turn_link(turn: StoredTurn) -> str:
    if turn.thread_id is None:
        return link("/thread", {"turn": turn.turn_id})
    return thread_link(turn.thread_id, turn.turn_id)


def header(here: str, path: str, file: str) -> Markup:
    """The head of every page."""
    section = "/threads" if here == "/thread" else here
    return render("head", section=section, store=path, file=file)


def filters_bar(store: TurnStore, action: str, query: Mapping[str, str]) -> Markup:
    """The filters, as a form whose address is the page's."""
    default = EVERYTHING if action == "/threads" else FITTING
    shown = {
        **dict.fromkeys(("policy", "model", "engine", "status", "thread", "run", "since", "until")),
        **TurnFilter.from_mapping(query).as_mapping(),
    }
    return render(
        "filters",
        action=action,
        names=names_in(store),
        chosen=shown,
        window=query.get("window") or default,
        windows=WINDOWS,
        default_window=default,
        search=query.get("search", ""),
        order=query.get("order", ""),
        tools=query.get("tools", ""),
    )


def overview_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """Figures, charts, newest turns."""
    turn_filter, _ = page_filter(store, query)
    seen = overview(store, turn_filter)
    turns = store.turns(turn_filter, limit=12)
    return render(
        "overview",
        seen=seen,
        by_policy=policy_charts(seen, _labels(seen)),
        export_links=export_links("policies", query),
        stratum_turns=STRATUM_TURNS,
        charts=overview_charts(seen),
        turns=turns,
        turn_link=_turn_link,
    )


def _labels(seen: Overview) -> list[str]:
    """The intervals' names."""
    shown = formatting.clock if seen.interval_seconds <= MINUTE else lambda at: formatting.moment(at)[:16]
    return [shown(point.at) for point in seen.points]


def overview_charts(seen: Overview) -> list[Markup]:
    points, labels = seen.points, _labels(seen)
    unit = formatting.interval(seen.interval_seconds)
    return [
        charts.line_chart(
            f"Turns per {unit}",
            labels,
            [
                ("all", "one", [point.turns for point in points]),
                ("failed or aborted", "wrong", [point.bad or None for point in points]),
            ],
            formatting.count,
            bars=True,
        ),
        charts.line_chart(
            "Time to first token",
            labels,
            [
                ("p50", "one", [point.ttft_p50 for point in points]),
                ("p95", "two", [point.ttft_p95 for point in points]),
            ],
            formatting.duration,
        ),
        charts.line_chart(
            "Prefill tokens/s",
            labels,
            [("", "one", [point.prefill_tokens_per_second for point in points])],
            formatting.rate,
        ),
        charts.line_chart(
            "Prefix-cache hits",
            labels,
            [("", "three", [point.cache_hit_share for point in points])],
            formatting.share,
            top=1.0,
        ),
    ]


def threads_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """The list of threads."""
    turn_filter, _ = page_filter(store, query, EVERYTHING)
    asked = threads_asked(query)
    order, descending = asked["order"], asked["descending"]
    digits = query.get("offset", "")
    offset = int(digits) if digits.isdecimal() and len(digits) < 10 else 0
    threads = store.threads(turn_filter, limit=PAGE + 1, offset=offset, **asked)

    def page(at: int) -> str:
        return link("/threads", {**query, "offset": str(at) if at else None})

    def ordered(by: str) -> str:
        """Address of the list in that order; once more turns it round."""
        return link(
            "/threads", {**query, "order": f"-{by}" if (order, descending) == (by, True) else by, "offset": None}
        )

    return render(
        "threads",
        threads=threads[:PAGE],
        columns_shown=[column for column in _THREAD_COLUMNS if column[0] != "score" or _scored(threads)],
        order=order,
        descending=descending,
        ordered=ordered,
        export_links=export_links("threads", query),
        thread_link=thread_link,
        newer=page(max(0, offset - PAGE)) if offset else None,
        older=page(offset + PAGE) if len(threads) > PAGE else None,
    )


_THREAD_COLUMNS = (
    ("question", "First question", False),
    ("last", "Last turn", True),
    ("", "Policies", False),
    ("turns", "Turns", True),
    ("prompt", "Prompt tokens", True),
    ("cached", "Cache hits", True),
    ("decode", "Decode tokens", True),
    ("seconds", "Model time", True),
    ("score", "Score", True),
    ("bad", "Outcome", False),
)
"""``(order, heading, whether it holds numbers)``; those without an order cannot be ordered by."""


def _scored(threads: Sequence[ThreadSummary]) -> bool:
    return any(thread.score is not None for thread in threads)


def thread_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """One thread: where the time went, waterfall, turns, and the chosen turn."""
    current = store.turn(query["turn"]) if query.get("turn") else None
    thread = query.get("id") or (current.thread_id if current is not None else None)
    limit = 500 if query.get("show") == "500" else 100
    if thread is None:
        turns, spans = ([current], []) if current is not None else ([], [])
    else:
        turns, spans = store.thread(thread, limit=limit), store.spans(thread=thread)
    return render(
        "thread",
        live=True,
        opened=True,
        question=store.question(thread) if thread is not None else None,
        thread=thread or (f"Turn {current.turn_id} (of no thread)" if current is not None else "this address"),
        turns=turns,
        policies=list(dict.fromkeys(turn.policy for turn in turns)),
        models=list(dict.fromkeys(turn.model for turn in turns)),
        fall=waterfall(turns, spans),
        summary=thread_summary(store, thread),
        parts=PARTS,
        answers=answers(store, turns),
        current=current.turn_id if current is not None else None,
        detail=turn_detail(store, current) if current is not None else None,
        turn_link=_turn_link,
        more=link("/thread", {**query, "show": "500"}) if len(turns) == limit == 100 else None,
        export_links=export_links("turns", {"id": thread}) if thread is not None else None,
    )


def thread_summary(store: TurnStore, thread: str | None) -> ThreadSummary | None:
    """A thread as the list shows it; ``None`` where there is no such thread."""
    return next(iter(store.threads(TurnFilter(thread=thread), limit=1)), None) if thread is not None else None


def live_state(store: TurnStore) -> Markup:
    """Whether the page follows the store, and how old the newest turn is."""
    newest = store.turns(limit=1)
    return render("live", newest=newest[0] if newest else None)


def error_page(path: str, message: str | None, *, wrong: bool = False) -> Markup:
    """Waiting for a store that does not exist yet (``message`` is ``None``), or why it cannot be read, or (``wrong``)
    what is wrong with the address."""
    return render("error", path=path, message=message, waiting=message is None, wrong=wrong)
