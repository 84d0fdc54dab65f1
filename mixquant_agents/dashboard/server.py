"""The live dashboard: NiceGUI pages around the fragments of :mod:`~mixquant_agents.dashboard.views`.

One watcher asks the store four times a second whether anything was committed (a pragma, microseconds); only then do
the open pages compute their fragment again, and only a fragment that changed is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mixquant_agents.dashboard import views
from mixquant_agents.dashboard.guard import Guard, check_address
from mixquant_agents.dashboard.source import Source
from mixquant_agents.errors import MissingDependencyError, RequestError, StoreError
from mixquant_agents.telemetry.connect import default_store_path
from mixquant_agents.telemetry.store import TurnStore

__all__ = ["serve"]

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
STATIC = Path(__file__).parent / "static"

Fragment = Callable[[TurnStore, Mapping[str, str]], Markup]


class Watcher:
    """Counts the store's changes for all pages."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.changes = 0
        self.running = True

    async def run(self) -> None:
        """Until the server stops."""
        last: object = None
        while self.running:
            try:
                now: object = self.source.version()
            except StoreError as error:
                now = str(error)
            if now != last:
                self.changes, last = self.changes + 1, now
            await asyncio.sleep(POLL_SECONDS)


def serve(
    store: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    show: bool = False,
    started: Callable[[str], None] | None = None,
) -> None:
    """Run the dashboard until it is interrupted.

    Args:
        store: the turn store; it may not exist yet.
        host: address to listen on; other than loopback needs ``token``.
        port: TCP port.
        token: at least 16 characters.
        show: open a browser.
        started: told the address once it answers.

    Raises:
        ConfigError: host, port or token are not allowed together.
        StoreError: the file exists and is no readable store.
        MissingDependencyError: NiceGUI is not installed.
    """
    check_address(host, token)
    path = Path(store) if store is not None else default_store_path()
    source = Source(path)
    if source.exists():
        source.store()  # a file that is no store, or a newer one, is told at once
    try:
        from nicegui import app, ui
    except ImportError as error:
        raise MissingDependencyError("the dashboard needs NiceGUI: pip install 'mixquant-agents[dashboard]'") from error

    watcher = Watcher(source)
    tasks: set[asyncio.Task[None]] = set()

    async def begin() -> None:
        tasks.add(asyncio.create_task(watcher.run()))
        if started is not None:
            name = f"[{host}]" if ":" in host else host
            started(f"http://{name}:{port}/" + (f"?token={token}" if token else ""))

    def end() -> None:
        watcher.running = False

    app.on_startup(begin)
    app.on_shutdown(end)
    app.add_static_files("/mixquant", str(STATIC))
    app.add_middleware(Guard, token=token)
    _pages(watcher)
    # NiceGUI serves all its scripts, styles and fonts itself.
    ui.run(
        host=host,
        port=port,
        title="mixquant",
        favicon="◐",
        show=show,
        reload=False,
        show_welcome_message=False,
        uvicorn_logging_level="warning",
        reconnect_timeout=10,
    )


def _pages(watcher: Watcher) -> None:
    """Declare the pages."""
    from nicegui import ui
    from starlette.requests import Request

    def declare(address: str, title: str, fragment: Fragment, filters: bool) -> None:
        async def page(request: Request) -> None:
            await _page(watcher, address, title, fragment, filters, dict(request.query_params))

        ui.page(address, title=title)(page)

    declare("/", "Overview · mixquant", views.overview_page, True)
    declare("/threads", "Threads · mixquant", views.threads_page, True)
    declare("/thread", "Thread · mixquant", views.thread_page, False)
    declare("/compare", "Compare · mixquant", views.compare_page, False)


async def _page(
    watcher: Watcher, address: str, title: str, fragment: Fragment, filters: bool, query: dict[str, str]
) -> None:
    from nicegui import run, ui

    ui.add_head_html(
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/mixquant/app.css"><script src="/mixquant/app.js"></script>'
    )
    source = watcher.source
    ui.html(views.header(address, str(source.path), source.path.name), sanitize=False)
    bar = ui.html("", sanitize=False).classes("mq")
    body = ui.html('<p class="loading" role="status">Reading the store …</p>', tag="main", sanitize=False).classes("mq")
    body.props("id=main tabindex=-1 aria-live=off")
    seen = {"changes": -1, "busy": False}

    def compute() -> tuple[Markup, Markup]:
        if not source.exists():
            return Markup(""), views.trouble_page(str(source.path), None)
        try:
            store = source.store()
            shown = views.filters_bar(store, address, query) if filters else Markup("")
            return shown, fragment(store, query)
        except (StoreError, RequestError) as error:
            return Markup(""), views.trouble_page(str(source.path), str(error))

    async def refresh() -> None:
        if seen["busy"] or seen["changes"] == watcher.changes:
            return
        seen["busy"], seen["changes"] = True, watcher.changes
        try:
            made = await run.io_bound(compute)
            if made is not None:  # else the server is stopping
                _update(bar, made[0])
                _update(body, made[1])
        except Exception:
            log.exception("the page %s could not be made", address)
            _update(body, views.trouble_page(str(source.path), "an unexpected error; the server's log has the details"))
        finally:
            seen["busy"] = False

    ui.timer(POLL_SECONDS, refresh, immediate=True)


def _update(element: Any, content: Markup) -> None:
    if element.content != content:
        with suppress(RuntimeError):  # the page was closed while its fragment was computed
            element.set_content(content)
