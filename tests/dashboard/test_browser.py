"""The dashboard in a real browser: live, drill-down, compare, addresses, hostile content, both widths, keys."""

from __future__ import annotations

import importlib.resources
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from dashboard_help import Dashboard, make_turn, picture, resize, text_of, until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from mixquant_agents.bench.overhead.store import fill
from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder, TurnContent
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.browser

HOSTILE = (
    '</pre><script>window.pwned=1</script><img src=x onerror="window.pwned=2"><style>*{display:none}</style>{{7*7}}'
)


@pytest.fixture(scope="module")
def board(serve: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("board") / "turns.sqlite"
    recorder = StoreRecorder(store, content=True)
    recorder.check()
    fill(recorder, 1_500, content=True)
    assert recorder.flush(30)
    yield Dashboard(serve(store), store, recorder)
    recorder.close()


def opened(browser: Any, address: str, holds: str) -> None:
    browser.get(address)
    until(lambda: holds in text_of(browser), f"{holds!r} on {address}")


def test_turn_shows_within_a_second(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/?window=1h&policy=live-policy", "No turns match")
    # The page itself notes when a thread's name appears: asking it from outside takes its own time.
    browser.execute_script(
        "window.shown = {}; new MutationObserver(() => { for (const a of document.querySelectorAll('main tbody a')) "
        "window.shown[a.innerText] ??= Date.now() / 1000; })"
        ".observe(document.body, {childList: true, subtree: true, characterData: true})"
    )
    taken = []
    for n in range(7):
        thread = f"live-{n}-{time.time_ns()}"
        began = time.time()
        board.recorder.record(make_turn(thread_id=thread, policy="live-policy"))
        shown = until(
            lambda thread=thread: browser.execute_script("return window.shown[arguments[0]]", thread),
            "the turn just recorded",
        )
        taken.append(shown - began)
    # Of seven on a machine that others use, one or two may come late through no fault of the page.
    assert sorted(taken)[4] < 1.0, taken


def test_links_lead_from_overview_to_messages(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/threads?window=30d&search=synthetic", "First question")
    browser.find_elements(By.CSS_SELECTOR, "main tbody a")[0].click()
    until(lambda: "Waterfall" in text_of(browser), "the thread")
    rows = browser.find_elements(By.CSS_SELECTOR, ".fall li")
    turns = browser.find_elements(By.CSS_SELECTOR, ".fall li.turn summary")
    assert len(turns) >= 4
    assert len(rows) > len(turns), "tools have rows of their own"
    assert browser.find_elements(By.CSS_SELECTOR, ".fall .p-prefill")
    turns[1].click()
    inside = browser.find_elements(By.CSS_SELECTOR, ".fall li.turn details")[1]
    until(lambda: "Answer" in inside.text, "the turn's row, opened")
    assert "turn=" not in browser.current_url, "it opens in place"
    inside.find_element(By.TAG_NAME, "a").click()
    text = until(lambda: "Prefix reuse" in text_of(browser) and text_of(browser), "the turn's detail")
    assert "Which of my notes mention the budget?" in text
    assert "Quantized rows" in text
    assert "turn=" in browser.current_url
    shown = browser.find_element(By.CSS_SELECTOR, ".fall [aria-current]").text
    assert shown.startswith("turn 1")


def test_policies_are_compared(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/compare?window=30d&a.policy=exact&b.policy=mixquant-fp8", "Distributions")
    text = text_of(browser)
    assert "At like sizes B reads a token" in text
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart path.side-b")) == 6
    Select(browser.find_element(By.NAME, "b.policy")).select_by_value("uniform-fp8")
    until(lambda: "b.policy=uniform-fp8" in browser.current_url, "the choice in the address")
    until(lambda: "B uniform-fp8" in text_of(browser), "the other policy")


def test_emulation_gets_no_speed_up(browser: Any, board: Dashboard) -> None:
    for policy, emulated in (("exact", False), ("mixquant-nvfp4", True)):
        for _ in range(8):
            board.recorder.record(make_turn(model="tiny", policy=policy, emulated=emulated, thread_id=policy))
    board.recorder.flush()
    opened(browser, f"{board.url}/?model=tiny&window=1h", "emulated")
    assert "times say nothing about speed" in text_of(browser)
    assert "×" not in browser.find_element(By.CSS_SELECTOR, ".tiles").text
    opened(
        browser, f"{board.url}/compare?a.policy=exact&b.policy=mixquant-nvfp4&a.model=tiny&b.model=tiny", "emulation"
    )
    assert "×" not in browser.find_element(By.CSS_SELECTOR, "main").text


def test_filters_live_in_the_address(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/?window=30d&policy=exact", "Newest turns")
    assert Select(browser.find_element(By.NAME, "policy")).first_selected_option.text == "exact"
    policies = {cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td[data-label=Policy]")}
    assert policies == {"exact"}
    Select(browser.find_element(By.NAME, "policy")).select_by_value("mixquant-fp8")
    until(lambda: "policy=mixquant-fp8" in browser.current_url, "the choice in the address")
    assert "window=30d" in browser.current_url
    until(lambda: "mixquant-fp8" in text_of(browser) and "Newest turns" in text_of(browser), "the filtered page")
    browser.back()
    until(lambda: "policy=exact" in browser.current_url, "the way back")
    opened(browser, f"{board.url}/?since=yesterday", "This address cannot be shown")
    assert "'yesterday' is not an ISO 8601 instant" in text_of(browser)


def test_hostile_content_is_shown_as_text(browser: Any, board: Dashboard) -> None:
    thread = f"evil {HOSTILE}"
    for index in range(2):
        board.recorder.record_span(
            Span(
                kind=SpanKind.TOOL, name=HOSTILE, span_id=f"s{index}", started_at=utc(-1), seconds=0.1,
                thread_id=thread, error=HOSTILE, arguments=HOSTILE, result=HOSTILE,
            )
        )  # fmt: skip
        content = TurnContent(
            messages=[
                {"role": "tool", "name": HOSTILE, "content": HOSTILE},
                {"role": HOSTILE, "content": [{"type": "text", "text": HOSTILE}]},
                "not a message at all " + HOSTILE,  # type: ignore[list-item]
            ],
            answer={"role": "assistant", "content": HOSTILE, "tool_calls": [{"function": {"name": HOSTILE}}, HOSTILE]},
            prompt_text=f"{HOSTILE} version {index} {HOSTILE}",
        )
        turn = make_turn(
            thread_id=thread, model=HOSTILE, policy=HOSTILE, error=HOSTILE, turn_index=index, turn_id=f"e{index}"
        )
        board.recorder.record(turn, content=content, prompt_token_ids=[index, *range(640)])
    board.recorder.flush()
    pages = (
        "/?window=1h", "/threads?window=1h", f"/thread?id={quote(thread)}", f"/thread?id={quote(thread)}&turn=e1",
        f"/compare?window=1h&a.policy={quote(HOSTILE)}&b.policy={quote(HOSTILE)}",
        f"/?window=1h&policy={quote(HOSTILE)}&run={quote(HOSTILE)}", f"/threads?search={quote(HOSTILE)}",
    )  # fmt: skip
    for page in pages:
        browser.get(board.url + page)
        until(lambda: "Reading the store" not in text_of(browser) and browser.find_elements(By.TAG_NAME, "main"), page)
        time.sleep(0.3)
        assert browser.execute_script("return window.pwned") is None, page
        assert not browser.find_elements(By.CSS_SELECTOR, "main img, main script, main style"), page
    opened(browser, f"{board.url}/thread?id={quote(thread)}&turn=e1", "Prefix reuse")
    assert browser.find_element(By.TAG_NAME, "body").is_displayed()
    text = text_of(browser)
    assert text.count(HOSTILE) >= 6
    assert "{{7*7}}" in text
    assert "diverged" in text
    picture(browser, "hostile")


def utc(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_requests_stay_on_the_machine(browser: Any, board: Dashboard) -> None:
    browser.get_log("performance")
    for page in ("/", "/threads", "/compare"):
        opened(browser, f"{board.url}{page}?window=30d", "Time")
        time.sleep(0.5)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    wanted = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    sockets = [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
    assert len(wanted) > 10
    assert sockets, "the live updates come over a socket"
    host = board.url.removeprefix("http://")
    outside = [url for url in wanted + sockets if not url.startswith((f"http://{host}/", f"ws://{host}/", "data:"))]
    assert not outside
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_readable_at_both_widths(browser: Any, board: Dashboard, width: int, dark: bool) -> None:
    resize(browser, width, dark=dark)
    opened(browser, f"{board.url}/threads?window=30d&search=synthetic", "First question")
    thread = browser.find_elements(By.CSS_SELECTOR, "main tbody a")[1].get_attribute("href")
    name = f"{width}-{'dark' if dark else 'light'}"
    for page, address, holds in (
        ("overview", f"{board.url}/?window=30d", "Newest turns"),
        ("threads", f"{board.url}/threads?window=30d", "First question"),
        ("thread", thread, "Waterfall"),
        ("compare", f"{board.url}/compare?window=30d", "Distributions"),
    ):
        resize(browser, width, dark=dark)
        opened(browser, address, holds)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, f"{page} is too wide"
        small = browser.execute_script(
            "return [...document.querySelectorAll('main *')].filter(e => e.innerText && e.children.length === 0 && "
            "parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML)"
        )
        assert not small
        paper, ink = browser.execute_script(
            "const s = getComputedStyle(document.querySelector('.mq')); "
            "return [getComputedStyle(document.body).backgroundColor, s.color]"
        )
        assert contrast(paper, ink) > 12
        picture(browser, f"{page}-{name}")
    resize(browser, 1280)


@pytest.mark.parametrize("width", [1440, 1280, 1024, 390])
def test_every_column_is_in_sight(browser: Any, board: Dashboard, width: int) -> None:
    """Also where turns failed and a policy is emulated."""
    resize(browser, width)
    opened(browser, f"{board.url}/threads?window=30d&search=synthetic", "First question")
    thread = browser.find_elements(By.CSS_SELECTOR, "main tbody a")[1].get_attribute("href")
    addresses = (f"{board.url}/?window=30d", f"{board.url}/threads?window=30d", thread)
    for address, holds in zip(addresses, ("Newest turns", "First question", "Waterfall"), strict=True):
        opened(browser, address, holds)
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.sheet')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => e.innerText.slice(0, 200))"
        )
        assert not cut, address
        picture(browser, f"columns-{holds.split(',')[0].lower().replace(' ', '-')}-{width}")
        resize(browser, width)
    resize(browser, 1280)


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two ``rgb(…)`` colours."""

    def luminance(colour: str) -> float:
        parts = [int(float(part)) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_theme_switch_is_kept(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/", "Overview")
    before = browser.execute_script("return document.documentElement.dataset.theme")
    browser.find_element(By.CSS_SELECTOR, "[data-theme-toggle]").click()
    opened(browser, f"{board.url}/threads", "Threads")
    after = browser.execute_script("return document.documentElement.dataset.theme")
    browser.execute_script("localStorage.clear()")
    assert {before, after} == {"light", "dark"}


def test_pages_are_reachable_by_keyboard(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    opened(browser, f"{board.url}/threads?window=30d&search=synthetic", "First question")
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys("/")
    assert browser.switch_to.active_element.get_attribute("name") == "search"
    seen = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("name") or active.tag_name)
        if active.get_attribute("id") == "thread-2":
            break
    assert seen[-1] == "thread-2", seen
    ring = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    until(lambda: "Waterfall" in text_of(browser), "the thread by Enter")
    browser.find_element(By.TAG_NAME, "body").send_keys("c")
    until(lambda: "/compare" in browser.current_url, "the comparison by its key")


def test_live_pages_say_their_language_and_have_one_main_landmark(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    for page, heading in (("/", "Overview"), ("/threads", "Threads"), ("/compare", "A and B compared")):
        browser.get(f"{board.url}{page}?window=30d")
        until(lambda: browser.find_elements(By.TAG_NAME, "h1"), f"the heading of {page}")
        assert browser.execute_script("return document.documentElement.lang") == "en"
        landmarks = browser.find_elements(By.CSS_SELECTOR, "main:not([role=none])")
        assert [element.get_attribute("id") for element in landmarks] == ["main"]
        assert [element.text for element in browser.find_elements(By.TAG_NAME, "h1")] == [heading]
        assert len(browser.find_elements(By.CSS_SELECTOR, "header[role=banner]")) == 1
    link = browser.find_element(By.CSS_SELECTOR, "a.skip")
    browser.execute_script("arguments[0].click()", link)
    until(lambda: browser.switch_to.active_element.get_attribute("id") == "main", "the page by the skip link")


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_have_no_serious_finding_of_axe(browser: Any, board: Dashboard, width: int, dark: bool) -> None:
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    addresses = {
        "/": "Newest turns", "/threads?search=synthetic": "First question", "/compare": "Distributions",
        f"/thread?id={AXE_THREAD}&turn=axe-1": "Added since", "/?policy=none": "No turns match",
    }  # fmt: skip
    record_axe_thread(board)
    for address, holds in addresses.items():
        resize(browser, width, dark=dark)
        opened(browser, board.url + address, holds)
        browser.set_script_timeout(120)  # axe measures every element: minutes on a machine under load
        browser.execute_script(axe)
        found = browser.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
        assert len(found["passes"]) > 15, "it looked"
        serious = [
            (finding["id"], [node["html"] for node in finding["nodes"]])
            for finding in found["violations"]
            if finding["impact"] in ("serious", "critical")
        ]
        assert not serious, (address, serious)
    resize(browser, 1280)


def test_axe_finds_what_is_wrong(browser: Any, board: Dashboard) -> None:
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    opened(browser, f"{board.url}/", "Overview")
    browser.execute_script("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x><input>')")
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[0])")
    assert {"image-alt", "label"} <= {finding["id"] for finding in found["violations"]}


AXE_THREAD = "axe"


def record_axe_thread(board: Dashboard) -> None:
    """A thread with all kinds of rows; written once."""
    with TurnStore(board.store) as store:
        if store.thread(AXE_THREAD):
            return
    for kind, name, parent, seconds in (
        (SpanKind.AGENT, "lead", None, 3.0),
        (SpanKind.NODE, "model", "axe-lead", 3.0),
        (SpanKind.TOOL, "search", "axe-model", 0.0211),
    ):
        failed = None if kind is SpanKind.NODE else "KeyError: 'pens'"
        board.recorder.record_span(
            Span(kind=kind, name=name, span_id=f"axe-{name}", parent_id=parent, started_at=utc(-3), seconds=seconds,
                 thread_id=AXE_THREAD, error=failed)
        )  # fmt: skip
    question = {"role": "user", "content": "Which notes?"}
    for index, messages in enumerate(([question], [question, {"role": "user", "content": "And then?"}])):
        turn = make_turn(turn_id=f"axe-{index}", turn_index=index, thread_id=AXE_THREAD, error="x" if index else None)
        board.recorder.record(turn, content=TurnContent(messages=messages))
    board.recorder.flush()


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_failures_are_in_sight_on_every_screen(browser: Any, board: Dashboard, width: int) -> None:
    resize(browser, width)
    record_axe_thread(board)
    opened(browser, f"{board.url}/thread?id={AXE_THREAD}", "1 tool error")
    assert "1 run failed" in text_of(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    times = browser.find_elements(By.CSS_SELECTOR, ".fall .time")
    assert {"failed", "error"} <= {time.text.split()[0] for time in times}
    assert not [time.text for time in times if browser.execute_script(
        "return arguments[0].scrollWidth > arguments[0].clientWidth + 1", time
    )]  # fmt: skip
    opened(browser, f"{board.url}/threads?tools=failed", "1 tool error")
    resize(browser, 1280)


def test_threads_are_searched_and_ordered(browser: Any, board: Dashboard) -> None:
    resize(browser, 1280)
    record_axe_thread(board)
    opened(browser, f"{board.url}/threads?search=WHICH+NOTES%3F", "Which notes?")
    assert len(browser.find_elements(By.CSS_SELECTOR, "main tbody tr")) == 1
    opened(browser, f"{board.url}/threads?search=synthetic", "First question")
    browser.find_element(By.LINK_TEXT, "Turns").click()
    until(lambda: "order=turns" in browser.current_url, "the order in the address")
    until(lambda: "Turns ↓" in text_of(browser), "the mark of the order")

    def turns() -> list[int]:
        return [int(cell.text) for cell in browser.find_elements(By.CSS_SELECTOR, "td[data-label=Turns]")]

    assert turns() == sorted(turns(), reverse=True)
    assert len(set(turns())) > 3


def test_live_state_counts_the_seconds(browser: Any, board: Dashboard) -> None:
    board.recorder.record(make_turn(thread_id="state"))
    opened(browser, f"{board.url}/", "s ago")
    state = browser.find_element(By.CSS_SELECTOR, ".live")
    assert (state.get_attribute("data-state"), state.text.split(",")[0]) == ("live", "Live")
    browser.execute_script("window.socket.disconnect()")
    until(lambda: "Connection lost" in text_of(browser), "the lost connection")


def test_overview_exports_what_it_shows(browser: Any, board: Dashboard) -> None:
    opened(browser, f"{board.url}/?window=30d&policy=mixquant-fp8", "By policy")
    (row,) = browser.find_elements(By.CSS_SELECTOR, "section[aria-labelledby=by-policy] tbody tr")
    assert row.find_element(By.TAG_NAME, "th").text == "mixquant-fp8"
    assert "reading saved" in row.text
    address = browser.find_element(By.LINK_TEXT, "JSON").get_attribute("href")
    answer = browser.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then((r) => r.json()).then(done)", address
    )
    assert [entry["policy"] for entry in answer] == ["mixquant-fp8"]
    assert answer[0]["reading_saved_seconds"] > 0


def test_opened_tool_row_stays_open_when_the_thread_grows(browser: Any, board: Dashboard) -> None:
    words = {"arguments": '{"query": "budget"}', "result": "three notes"}
    board.recorder.record_span(
        Span(
            kind=SpanKind.TOOL,
            name="search",
            span_id="grows",
            started_at=utc(-1),
            seconds=0.1,
            thread_id="grows",
            **words,
        )
    )
    board.recorder.record(make_turn(thread_id="grows"))
    board.recorder.flush()
    opened(browser, f"{board.url}/thread?id=grows", "search")
    assert "three notes" not in text_of(browser)
    row = browser.find_element(By.ID, "open-grows")
    browser.execute_script("arguments[0].focus()", row)
    row.send_keys(Keys.ENTER)
    until(lambda: "three notes" in text_of(browser) and '"query": "budget"' in text_of(browser), "what the tool said")
    picture(browser, "tool-row")
    board.recorder.record(make_turn(thread_id="grows", turn_index=1))
    until(lambda: "2 turns" in text_of(browser), "the second turn")
    until(lambda: "three notes" in text_of(browser), "the row, still open", 5)


def test_focus_survives_a_live_update(browser: Any, board: Dashboard) -> None:
    opened(browser, f"{board.url}/?window=1h&policy=exact", "Time")
    board.recorder.record(make_turn(thread_id="focus-0"))
    until(lambda: "focus-0" in text_of(browser), "a first turn")
    link = browser.find_element(By.CSS_SELECTOR, "main tbody a")
    identity = link.get_attribute("id")
    browser.execute_script("arguments[0].focus()", link)
    board.recorder.record(make_turn(thread_id="focus-1"))
    until(lambda: "focus-1" in text_of(browser), "a second turn")
    until(lambda: browser.switch_to.active_element.get_attribute("id") == identity, "the focus where it was")


def test_page_follows_a_store_from_empty_to_damaged(browser: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    store = tmp_path / "later.sqlite"
    url = serve(store)
    opened(browser, f"{url}/", "No turns yet")
    assert "StoreRecorder(" in text_of(browser)
    picture(browser, "empty")
    recorder = StoreRecorder(store)
    recorder.record(make_turn(thread_id="the very first"))
    until(lambda: "the very first" in text_of(browser), "the first turn, without a reload", 5)
    recorder.close()
    for name in ("later.sqlite-wal", "later.sqlite-shm", "later.sqlite"):
        (tmp_path / name).unlink(missing_ok=True)
    store.write_bytes(b"no database at all" * 100)
    until(lambda: "cannot be read" in text_of(browser), "the error state", 5)
    assert "not a SQLite database" in text_of(browser)
    picture(browser, "error")
    opened(browser, f"{url}/thread?id=nobody", "cannot be read")
