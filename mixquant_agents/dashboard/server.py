"""The live dashboard: NiceGUI pages around the fragments of :mod:`~mixquant_agents.dashboard.views`.

One watcher asks the store four times a second whether anything was committed (a pragma, microseconds); only then do
the open pages compute their fragment again, and only a fragment that changed is sent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from mixquant_agents.dashboard.auth import AccessGuard, check_address
from mixquant_agents.dashboard.store_source import StoreSource
from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_agents.telemetry.store.connection import default_store_path

__all__ = ["serve"]

STATIC = Path(__file__).parent / "static"


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
        started: called with the address once it answers.

    Raises:
        ConfigError: host, port or token are not allowed together.
        StoreError: the file exists and is no readable store.
        MissingDependencyError: NiceGUI is not installed.
    """
    check_address(host, token)
    path = Path(store) if store is not None else default_store_path()
    source = StoreSource(path)
    if source.exists():
        source.store()  # a file that is no store, or a newer one, is refused at once
    try:
        from nicegui import app, ui

        from mixquant_agents.dashboard.live import Watcher, declare_pages
    except ImportError as error:
        raise MissingDependencyError("the dashboard needs NiceGUI: pip install 'mixquant-agents[dashboard]'") from error

    _claim(host, port)
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
    app.add_middleware(AccessGuard, token=token)
    declare_pages(watcher)
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


def _claim(host: str, port: int) -> None:
    """Say at once, and in one line, that an address cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error.strerror}); give another host or port"
        ) from error
