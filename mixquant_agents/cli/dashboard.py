"""``mixquant dashboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    store: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Turn store; it may not exist yet. Default: your own.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen here; beyond loopback it needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(envvar="MIXQUANT_DASHBOARD_TOKEN", help="Require this on every request; 16 characters at least."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="First bring a store of an older version up to date.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
) -> None:
    """Show recorded turns as a live web page.

    Reads the turn store until interrupted; works without a network.

    \b
    Example: mixquant dashboard --open
    """
    from mixquant_agents.cli.output import print_json, progress_console
    from mixquant_agents.dashboard.server import serve
    from mixquant_agents.telemetry.store.connection import connect_writer, default_store_path

    path = store if store is not None else default_store_path()
    if migrate and path.exists():
        connect_writer(path).close()

    def started(address: str) -> None:
        if as_json:
            print_json({"url": address, "store": str(path)})
        else:
            progress_console().print(f"dashboard of {path}: {address}  (Ctrl-C ends it)")

    serve(path, host=host, port=port, token=token, show=open_browser, started=started)
