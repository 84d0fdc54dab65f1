"""The live pages: NiceGUI around the fragments of :mod:`~mixquant_agents.dashboard.views`.

One watcher asks the store four times a second whether anything was committed (a pragma, microseconds); only then do the
open pages compute their fragment again, and only a fragment that changed is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from markupsafe import Markup
from nicegui import app, run, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.compare import compare_page
from mixquant_agents.dashboard.export import exported
from mixquant_agents.dashboard.store_source import StoreSource
from mixquant_agents.errors import RequestError, StoreError
from mixquant_agents.telemetry.store.reader import TurnStore

__all__ = ["Watcher", "declare_pages", "export_response"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25

Fragment = Callable[[TurnStore, Mapping[str, str]], Markup]


class Watcher:
    """Counts the store's changes for all pages."""

    def __init__(self, source: StoreSource) -> None:
        self.source = source
        self.changes = 0
        self.running = True

    async def run(self) -> None:
        """Until the server stops."""
        last: object = None
        while self.running:
            try:
                now: object = self.source.version()
            except Exception as error:  # whatever a file does: the pages say so, and the watch goes on
                now = f"{type(error).__name__}: {error}"
            if now != last:
                self.changes, last = self.changes + 1, now
            await asyncio.sleep(POLL_SECONDS)


def declare_pages(watcher: Watcher) -> None:
    """Declare all pages, and the addresses of what they export."""

    def declare(address: str, title: str, fragment: Fragment, filters: bool) -> None:
        async def page(request: Request) -> None:
            await _page(watcher, address, title, fragment, filters, dict(request.query_params))

        ui.page(address, title=title)(page)

    declare("/", "Overview · mixquant", views.overview_page, True)
    declare("/threads", "Threads · mixquant", views.threads_page, True)
    declare("/thread", "Thread · mixquant", views.thread_page, False)
    declare("/compare", "Compare · mixquant", compare_page, False)

    def export(request: Request, table: str, ending: str) -> Response:  # Starlette runs it in a thread
        return export_response(watcher.source, table, ending, dict(request.query_params))

    app.get("/export/{table}.{ending}", include_in_schema=False)(export)


def export_response(source: StoreSource, table: str, ending: str, query: Mapping[str, str]) -> Response:
    """A table as a file to keep; 400 where the address is wrong, 404 where there is no store yet, 503 where it cannot
    be read."""
    fresh = {"cache-control": "no-store"}  # the store grows, and what it holds is not for caches
    if not source.exists():
        return PlainTextResponse(f"no turns yet: {source.path} does not exist\n", 404, fresh)
    try:
        content, media_type = exported(source.store(), table, ending, query)
    except (StoreError, RequestError) as error:
        status = 400 if isinstance(error, RequestError) else 503
        return PlainTextResponse(f"{error}\n".encode("utf-8", "backslashreplace"), status, fresh)
    disposition = f'attachment; filename="mixquant-{table}.{ending}"'
    return Response(content, media_type=media_type, headers={"content-disposition": disposition, **fresh})


async def _page(
    watcher: Watcher, address: str, title: str, fragment: Fragment, filters: bool, query: dict[str, str]
) -> None:
    ui.add_head_html(
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/mixquant/app.css"><script src="/mixquant/app.js"></script>'
    )
    source = watcher.source
    ui.html(views.header(address, str(source.path), source.path.name), sanitize=False)
    state = ui.html("", tag="aside", sanitize=False).classes("mq state")
    state.props('aria-label="Live state"')
    bar = ui.html("", sanitize=False).classes("mq")
    body = ui.html('<p class="loading" role="status">Reading the store …</p>', tag="main", sanitize=False).classes("mq")
    body.props("id=main tabindex=-1 aria-live=off")
    seen = {"changes": -1, "busy": False}

    def compute() -> tuple[Markup, Markup, Markup]:
        if not source.exists():
            return Markup(""), Markup(""), views.error_page(str(source.path), None)
        try:
            store = source.store()
            shown = views.filters_bar(store, address, query) if filters else Markup("")
            return views.live_state(store), shown, fragment(store, query)
        except (StoreError, RequestError) as error:
            wrong = isinstance(error, RequestError)
            return Markup(""), Markup(""), views.error_page(str(source.path), str(error), wrong=wrong)

    async def refresh() -> None:
        if seen["busy"] or seen["changes"] == watcher.changes:
            return
        seen["busy"], seen["changes"] = True, watcher.changes
        try:
            made = await run.io_bound(compute)
            if made is not None:  # else the server is stopping
                for element, content in zip((state, bar, body), made, strict=True):
                    _update(element, content)
        except Exception:
            log.exception("the page %s could not be made", address)
            _update(body, views.error_page(str(source.path), "an unexpected error; the server's log has the details"))
        finally:
            seen["busy"] = False

    ui.timer(POLL_SECONDS, refresh, immediate=True)


def _update(element: ui.html, content: Markup) -> None:
    if element.content != content:
        with suppress(RuntimeError):  # the page was closed while its fragment was computed
            element.set_content(content)
