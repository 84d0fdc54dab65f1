"""Reports are whole, self-contained, harmless; how numbers are written; the waterfall's axis."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from dashboard_help import make_turn

from mixquant_agents.bench.overhead.store import fill
from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.report import write_report
from mixquant_agents.errors import RequestError
from mixquant_agents.telemetry import StoreRecorder, TurnContent
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.slow

HOSTILE = "</style><script>alert(1)</script><img src=http://evil.example/x>"


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "turns.sqlite"
    recorder = StoreRecorder(path, content=True)
    fill(recorder, 400, content=True)
    recorder.record(
        make_turn(thread_id=HOSTILE, policy=HOSTILE, error=HOSTILE),
        content=TurnContent(messages=[{"role": "tool", "content": f"secret {HOSTILE}"}]),
    )
    recorder.close()
    return path


def test_thread_report_is_self_contained(store: Path, tmp_path: Path) -> None:
    thread = next(one for one in TurnStore(store).threads() if one.thread_id.startswith("synthetic")).thread_id
    made = write_report(store, tmp_path / "deep" / "r.html", thread=thread, plots=tmp_path / "plots")
    assert made["report"] == "thread"
    page = (tmp_path / "deep" / "r.html").read_text()
    tags = Tags(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "img", "iframe", "object", "base")]
    addresses = [values.get("href") or values.get("src") for _, values in tags if "href" in values or "src" in values]
    anchors = {values["id"] for _, values in tags if "id" in values}
    assert addresses
    assert all(address and address.startswith("#") and address[1:] in anchors for address in addresses)
    assert "@import" not in page
    assert not re.search(r"url\(\s*['\"]?(?!data:)", page)
    assert "made-up conversation" not in page, "messages are left out unless asked for"
    names = {Path(name).suffix for name in made["files"]}
    assert names == {".html", ".png", ".svg"}
    assert Path(made["files"][1]).read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path(made["files"][2]).read_text()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["r.html"]


def test_report_content_only_when_asked_for_and_harmless(store: Path, tmp_path: Path) -> None:
    write_report(store, tmp_path / "r.html", thread=HOSTILE, content=True, plots=tmp_path)
    page = (tmp_path / "r.html").read_text()
    assert "secret &lt;/style&gt;&lt;script&gt;" in page
    assert not [tag for tag, _ in Tags(page).tags if tag in ("script", "img")]
    write_report(store, tmp_path / "q.html", thread=HOSTILE)
    page = (tmp_path / "q.html").read_text()
    assert "secret" not in page
    assert "Left out of this report" in page
    assert "Not recorded" not in page, "it was recorded, and is left out"
    assert "Choose a turn" not in page, "all of them are below"


def test_lone_surrogates_and_endless_times_are_shown(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite", content=True)
    content = TurnContent(messages=[{"role": "user", "content": "odd \udcff text"}], prompt_text="odd \udcff")
    turn = make_turn(thread_id="odd", itl_p95_seconds=float("inf"), total_seconds=float("inf"))
    recorder.record(turn, content=content)
    recorder.close()
    assert recorder.dropped == 0
    store = TurnStore(tmp_path / "turns.sqlite")
    page = views.thread_page(store, {"id": "odd", "turn": turn.turn_id})
    assert "odd \\udcff text" in page.encode().decode()
    for query in ({}, {"status": "failed"}, {"offset": "9" * 30}, {"offset": "²"}):
        views.overview_page(store, query).encode()
        views.threads_page(store, query).encode()
    write_report(tmp_path / "turns.sqlite", tmp_path / "r.html", thread="odd", content=True)
    assert "odd \\udcff text" in (tmp_path / "r.html").read_text()


def test_comparison_report(store: Path, tmp_path: Path) -> None:
    made = write_report(store, tmp_path / "c.html", policies="exact,mixquant-fp8", plots=tmp_path)
    assert made["report"] == "comparison"
    assert made["prefill_speed_up"][0] > 1
    page = (tmp_path / "c.html").read_text()
    assert "At like sizes B reads a token" in page
    assert len(made["files"]) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thread": "nobody"}, "no thread 'nobody'"),
        ({"policies": "exact"}, "two names, A,B"),
        ({"policies": "exact,nothing"}, "B (nothing) holds no turn"),
        ({"policies": "a,b", "thread": "t"}, "exclude each other"),
        ({"runs": "x,y"}, "A (run x) holds no turn"),
        ({"since": "2026-01-31"}, "for --compare and --runs"),
    ],
)
def test_report_with_wrong_options_leaves_no_file(
    store: Path, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        write_report(store, tmp_path / "r.html", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
