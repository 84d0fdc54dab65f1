"""Pages as HTML fragments: the store's figures through autoescaping templates. Shared by the live pages and the report.

Every function here reads the store and returns markup; none knows of NiceGUI, requests or sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mixquant_agents.dashboard import charts, written
from mixquant_agents.dashboard.timeline import waterfall
from mixquant_agents.telemetry.bins import MINUTE
from mixquant_agents.telemetry.diverge import diverging_text
from mixquant_agents.telemetry.filters import TurnFilter
from mixquant_agents.telemetry.overview import Comparison, Overview, compare, overview
from mixquant_agents.telemetry.rows import StoredTurn
from mixquant_agents.telemetry.store import TurnStore

__all__ = [
    "DEFAULT_WINDOW",
    "WINDOWS",
    "compare_page",
    "filters_bar",
    "header",
    "overview_page",
    "page_filter",
    "render",
    "thread_page",
    "threads_page",
    "trouble_page",
    "turn_detail",
]

WINDOWS = (
    ("15m", "15 minutes"),
    ("1h", "1 hour"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
    ("all", "everything"),
)
_SECONDS = {"15m": 900, "1h": 3_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
DEFAULT_WINDOW = "7d"
PAGE = 50

Link = Callable[[StoredTurn], str]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixquant_agents.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for name in ("clock", "count", "duration", "moment", "rate", "ratio", "share"):
        environment.filters[name] = getattr(written, name)
    environment.globals["said"] = _said
    return environment


def render(template: str, **values: Any) -> Markup:
    """A template's markup; every value is escaped unless it is :class:`~markupsafe.Markup` already."""
    return Markup(_environment().get_template(f"{template}.jinja").render(**values))  # noqa: S704 # autoescaped


def _said(message: Mapping[str, Any]) -> Markup:
    shown = {"content": None, "reasoning_content": None, "tool_calls": None, **message}
    calls = [{"function": None, "name": "?", "args": "", **call} for call in shown["tool_calls"] or ()]
    return render("said", message={**shown, "tool_calls": calls})


def link(path: str, values: Mapping[str, str | None]) -> str:
    """An address with the parameters that are set."""
    chosen = {name: value for name, value in values.items() if value}
    return f"{path}?{urlencode(chosen)}" if chosen else path


def thread_link(thread: str, turn: str | None = None) -> str:
    """Address of a thread, and of one of its turns."""
    address = link("/thread", {"id": thread, "turn": turn})
    return f"{address}#detail" if turn else address


def _turn_link(turn: StoredTurn) -> str:
    if turn.thread_id is None:
        return link("/thread", {"turn": turn.turn_id})
    return thread_link(turn.thread_id, turn.turn_id)


def page_filter(query: Mapping[str, str], prefix: str = "") -> tuple[TurnFilter, str]:
    """``(filter, window)`` of an address.

    Raises:
        RequestError: a parameter is not what its name asks for.
    """
    window = query.get("window") or DEFAULT_WINDOW
    chosen = TurnFilter.from_mapping(
        {name.removeprefix(prefix): value for name, value in query.items() if name.startswith(prefix)}
    )
    if chosen.since is None and window in _SECONDS:
        since = datetime.now(UTC) - timedelta(seconds=_SECONDS[window])
        chosen = replace(chosen, since=since.isoformat())
    return chosen, window


def header(here: str, path: str, file: str) -> Markup:
    """The head of every page."""
    return render("head", here=here, path=path, file=file)


def _names(store: TurnStore) -> dict[str, list[str]]:
    series = store.series()
    return {name: sorted({getattr(one, name) for one in series}) for name in ("policy", "model", "engine")}


def filters_bar(store: TurnStore, action: str, query: Mapping[str, str]) -> Markup:
    """The filters, as a form whose address is the page's."""
    chosen, window = page_filter(query)
    shown = {
        **dict.fromkeys(("policy", "model", "engine", "status", "thread", "run", "since", "until")),
        **chosen.as_mapping(),
    }
    if not query.get("since"):
        shown["since"] = None  # it came from the window
    return render(
        "filters",
        action=action,
        names=_names(store),
        chosen=shown,
        window=window,
        windows=WINDOWS,
        default_window=DEFAULT_WINDOW,
        search=query.get("search", ""),
    )


def overview_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """Figures, charts, newest turns."""
    chosen, _ = page_filter(query)
    seen = overview(store, chosen)
    turns = store.turns(chosen, limit=12)
    return render("overview", seen=seen, charts=_overview_charts(seen), turns=turns, turn_link=_turn_link)


def _overview_charts(seen: Overview) -> list[Markup]:
    points = seen.points
    shown = written.clock if seen.interval_seconds == MINUTE else lambda at: written.moment(at)[:16]
    labels = [shown(point.at) for point in points]
    unit = {60: "minute", 3_600: "hour"}.get(seen.interval_seconds, "day")
    return [
        charts.line_chart(
            f"Turns each {unit}",
            labels,
            [
                ("", "one", [point.turns for point in points]),
                ("failed or aborted", "two", [point.bad or None for point in points]),
            ],
            written.count,
        ),
        charts.line_chart(
            "Time to first token",
            labels,
            [
                ("p50", "one", [point.ttft_p50 for point in points]),
                ("p95", "two", [point.ttft_p95 for point in points]),
            ],
            written.duration,
        ),
        charts.line_chart(
            "Prefill tokens/s",
            labels,
            [("", "one", [point.prefill_tokens_per_second for point in points])],
            written.rate,
        ),
        charts.line_chart(
            "Prefix-cache hits",
            labels,
            [("", "three", [point.cache_hit_share for point in points])],
            written.share,
            top=1.0,
        ),
    ]


def threads_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """The list of threads."""
    chosen, _ = page_filter(query)
    offset = int(query["offset"]) if query.get("offset", "").isdigit() else 0
    found = store.threads(chosen, limit=PAGE + 1, offset=offset, search=query.get("search"))

    def page(at: int) -> str:
        return link("/threads", {**query, "offset": str(at) if at else None})

    return render(
        "threads",
        threads=found[:PAGE],
        thread_link=thread_link,
        newer=page(max(0, offset - PAGE)) if offset else None,
        older=page(offset + PAGE) if len(found) > PAGE else None,
    )


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
        thread=thread or (f"Turn {current.turn_id} (of no thread)" if current is not None else "this address"),
        turns=turns,
        policies=list(dict.fromkeys(turn.policy for turn in turns)),
        models=list(dict.fromkeys(turn.model for turn in turns)),
        fall=waterfall(turns, spans),
        current=current.turn_id if current is not None else None,
        detail=turn_detail(store, current) if current is not None else None,
        turn_link=_turn_link,
        more=link("/thread", {**query, "show": "500"}) if len(turns) == limit == 100 else None,
    )


def turn_detail(store: TurnStore, turn: StoredTurn) -> Markup:
    """All figures of a turn, its prefix reuse, its messages where they were recorded."""
    before = store.predecessor(turn)
    content = store.content(turn)
    no_prefix = "The first turn of its thread: there is no prompt before it to reuse."
    if before is not None:
        no_prefix = "Not known: no block hashes were recorded for this turn or the one before."
    elif turn.thread_id is None:
        no_prefix = "Not known: the turn belongs to no thread."
    return render(
        "turn",
        turn=turn,
        facts=_facts(turn),
        prefix=store.prefix(turn),
        no_prefix=no_prefix,
        divergence=diverging_text(store.content(before), content) if before is not None else None,
        content=content,
    )


def _facts(turn: StoredTurn) -> list[tuple[str, str]]:
    tokens = [
        (name, written.count(getattr(turn, f"{field}_tokens")))
        for name, field in (
            ("prompt tokens", "prompt"), ("cached", "cached"), ("prefilled", "prefill"),
            ("quantized rows", "quantized"), ("exact rows", "exact"), ("answer tokens", "decode"), ("of them reasoning", "reasoning"),
        )
    ]  # fmt: skip
    times = [
        (name, written.duration(getattr(turn, f"{field}_seconds")))
        for name, field in (
            ("queue", "queue"), ("prefill", "prefill"), ("delivery", "delivery"), ("time to first token", "ttft"),
            ("decode", "decode"), ("between tokens, mean", "itl_mean"), ("between tokens, p95", "itl_p95"),
            ("total", "total"), ("KV transfer", "transfer"),
        )
    ]  # fmt: skip
    times.append(("tools before", written.duration(turn.tool_seconds_before)))
    formats = f"{turn.prefill_format or written.UNKNOWN} / {turn.decode_format or written.UNKNOWN}"
    rest = [
        ("formats, prefill / decode", formats + (" (emulated)" if turn.emulated else "")),
        ("rows run again", written.count(turn.recomputed_rows)),
        ("preemptions", written.count(turn.preemptions)),
        ("finish reason", turn.finish_reason or written.UNKNOWN),
        ("times measured by", turn.timing_source or written.UNKNOWN),
        ("run", turn.root_run_id or written.UNKNOWN),
        ("trace", turn.trace_id or written.UNKNOWN),
    ]
    return [*tokens, *times, *rest]


def compare_page(store: TurnStore, query: Mapping[str, str]) -> Markup:
    """Two policies, models or runs side by side."""
    window = query.get("window") or DEFAULT_WINDOW
    names = _names(store)
    values = dict(query)
    if not any(name.startswith(("a.", "b.")) for name in values):  # a useful first view
        others = [policy for policy in names["policy"] if policy != "exact"]
        values |= {"a.policy": "exact" if "exact" in names["policy"] else "", "b.policy": others[0] if others else ""}
    sides = [page_filter({**values, f"{side}.window": window}, f"{side}.")[0] for side in ("a", "b")]
    since = None if window not in _SECONDS else datetime.fromtimestamp(time.time() - _SECONDS[window], UTC).isoformat()
    seen = compare(store, *(replace(side, since=since) for side in sides))
    labels = [" ".join((side.policy or "all policies", side.model or "", side.run or "")).strip() for side in sides]
    return render(
        "compare",
        seen=seen,
        a=_shown(sides[0]),
        b=_shown(sides[1]),
        names=names,
        window=window,
        windows=WINDOWS,
        default_window=DEFAULT_WINDOW,
        rows=comparison_rows(seen),
        charts=comparison_charts(seen, (f"A {labels[0]}", f"B {labels[1]}")),
    )


def _shown(chosen: TurnFilter) -> dict[str, str | None]:
    return {"policy": chosen.policy, "model": chosen.model, "run": chosen.run}


_PHASES = (("ttft", "Time to first token"), ("queue", "Queue"), ("prefill", "Prefill"), ("decode", "Decode"),
           ("itl_mean", "Between tokens"), ("total", "Whole turn"))  # fmt: skip


def comparison_rows(seen: Comparison) -> list[tuple[str, str, str, str]]:
    """``(name, A, B, B / A)`` as text. Times of an emulation get no quotient."""
    rows: list[tuple[str, str, str, str]] = [
        ("Turns", written.count(seen.a.turns), written.count(seen.b.turns), ""),
        ("Failed, aborted", f"{seen.a.failed}, {seen.a.aborted}", f"{seen.b.failed}, {seen.b.aborted}", ""),
        ("Prefix-cache hits", written.share(seen.a.cache_hit_share), written.share(seen.b.cache_hit_share), ""),
        ("Rows quantized", written.share(seen.a.quantized_share), written.share(seen.b.quantized_share), ""),
    ]
    emulated = seen.a.emulated or seen.b.emulated

    def quotient(a: float | None, b: float | None) -> str:
        return written.UNKNOWN if emulated or not a or b is None else written.ratio(b / a)

    for key, name in (
        ("prefill_tokens_per_second", "Prefill tokens/s"),
        ("decode_tokens_per_second", "Decode tokens/s"),
    ):
        a, b = getattr(seen.a, key), getattr(seen.b, key)
        rows.append((name, written.rate(a), written.rate(b), quotient(a, b)))
    for key, name in _PHASES:
        for place, percent in enumerate(("p50", "p95")):
            a, b = seen.a.percentiles[key][place], seen.b.percentiles[key][place]
            rows.append((f"{name}, {percent}", written.duration(a), written.duration(b), quotient(a, b)))
    return rows


def comparison_charts(seen: Comparison, names: tuple[str, str]) -> list[Markup]:
    """Distributions by phase."""
    return [charts.histogram(name, seen.distributions[key], names, written.duration) for key, name in _PHASES]


def trouble_page(path: str, message: str | None) -> Markup:
    """Waiting for a store that does not exist yet (``message`` is ``None``), or why it cannot be read."""
    return render("trouble", path=path, message=message, waiting=message is None)


def joined(parts: Sequence[Markup]) -> Markup:
    """Fragments one after the other."""
    return Markup("").join(parts)
