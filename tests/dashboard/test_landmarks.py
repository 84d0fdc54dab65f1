"""Pages have one first heading, headings in order, table headers that say what they head, and names for links."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dashboard_help import turn_read_in

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.compare import compare_page
from mixquant_agents.dashboard.report import comparison_report, thread_report
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore

VOID = {"meta", "link", "img", "input", "br", "rect", "line", "path", "polyline"}


class Outline(HTMLParser):
    """Headings, and the tags with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data.strip())

    def named(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        """The elements of these tags, with their text."""
        return [(tag, values, "".join(texts)) for tag, values, texts in self.elements if tag in tags]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TurnStore:
    path = tmp_path_factory.mktemp("landmarks") / "turns.sqlite"
    recorder = StoreRecorder(path)
    for policy, seconds in (("exact", 0.3), ("fast", 0.1)):
        for n in range(8):
            turn = turn_read_in(seconds, policy=policy, thread_id=policy, turn_id=f"{policy}-{n}")
            recorder.record(turn)
    span: dict[str, Any] = {"span_id": "s", "thread_id": "exact", "started_at": turn.started_at, "seconds": 0.1}
    recorder.record_span(Span(kind=SpanKind.TOOL, name="search", **span))
    recorder.close()
    return TurnStore(path)


def pages(store: TurnStore) -> dict[str, str]:
    sides = TurnFilter(policy="exact"), TurnFilter(policy="fast")
    made: dict[str, Any] = {
        "overview": views.overview_page(store, {}),
        "overview without turns": views.overview_page(store, {"policy": "none"}),
        "threads": views.threads_page(store, {}),
        "threads without a thread": views.threads_page(store, {"search": "none"}),
        "thread": views.thread_page(store, {"id": "exact"}),
        "thread and turn": views.thread_page(store, {"id": "exact", "turn": "exact-1"}),
        "no thread": views.thread_page(store, {"id": "none"}),
        "compare": compare_page(store, {}),
        "compare without turns": compare_page(store, {"a.policy": "none"}),
        "error": views.error_page("path", "it cannot be read"),
        "waiting": views.error_page("path", None),
        "report of a thread": thread_report(store, "exact"),
        "report of a comparison": comparison_report(store, *sides)[0],
    }
    return {name: str(page) for name, page in made.items()}


def test_pages_have_one_first_heading_and_no_gap_below_it(store: TurnStore) -> None:
    for name, page in pages(store).items():
        headings = Outline(page).named("h1", "h2", "h3")
        levels = [int(tag[1]) for tag, _, _ in headings]
        assert levels.count(1) == 1, name
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)
        assert all(text for _, _, text in headings), name


def test_table_headers_say_what_they_head(store: TurnStore) -> None:
    tables = 0
    for name, page in pages(store).items():
        outline = Outline(page)
        tables += len(outline.named("table"))
        for _, values, text in outline.named("th"):
            assert values.get("scope") in ("col", "row", "colgroup"), (name, text)
            assert text, name
    assert tables >= 7


def test_links_fields_and_landmarks_have_names(store: TurnStore) -> None:
    header = str(views.header("/", "path", "file"))
    bars = {f"filters of {action}": str(views.filters_bar(store, action, {})) for action in ("/", "/threads")}
    for name, page in {**pages(store), **bars, "header": header}.items():
        outline = Outline(page)
        for tag, values, text in outline.named("a", "button", "nav", "form", "section"):
            label = values.get("aria-label") or values.get("aria-labelledby") or values.get("id")
            assert text or label, (name, tag)
            assert tag != "nav" or values.get("aria-label"), name
        for _, values, _ in outline.named("div"):
            assert values.get("role") != "region" or (values.get("aria-label") and values.get("tabindex") == "0"), name
        identities = [values["id"] for _, values, _ in outline.elements if "id" in values]
        assert len(identities) == len(set(identities)), name
    for page in (page for name, page in pages(store).items() if name.startswith("report")):
        outline = Outline(page)
        assert outline.named("html")[0][1] == {"lang": "en"}
        assert len(outline.named("main")) == 1
    assert Outline(header).named("header")[0][1]["role"] == "banner"


def test_skip_link_leads_to_the_page(store: TurnStore) -> None:
    (link,) = [
        values for _, values, _ in Outline(str(views.header("/", "p", "f"))).named("a") if values.get("class") == "skip"
    ]
    live = Path(views.__file__).with_name("live.py").read_text(encoding="utf-8")
    assert f"id={(link['href'] or '').removeprefix('#')} tabindex=-1" in live
