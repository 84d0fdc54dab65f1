"""Who may see the dashboard: tokens, loopback names, origins, sockets, headers. Without a browser."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from dashboard_help import make_turn

from mixquant_agents.dashboard.auth import AccessGuard, check_address
from mixquant_agents.dashboard.server import serve
from mixquant_agents.errors import ConfigError, StoreError
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.loopback import is_loopback
from mixquant_agents.telemetry.store.connection import connect_writer

TOKEN = "0123456789abcdef-secret"  # noqa: S105 # a test's


async def inner(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    await send({"type": "http.response.body", "body": b"turns"})


async def ask(
    token: str | None, *, kind: str = "http", path: str = "/", query: str = "", **headers: str
) -> tuple[Any, dict[str, str]]:
    """``(status or socket message, headers)`` of one request."""
    said: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    headers = {"host": "127.0.0.1:8765", **headers}
    scope = {
        "type": kind, "path": path, "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await AccessGuard(inner, token)(scope, None, send)  # type: ignore[arg-type] # never received from
    answer = {name.decode(): value.decode() for name, value in said[0].get("headers", [])}
    return said[0].get("status", said[0]["type"]), answer


async def test_loopback_names_alone_are_answered_without_a_token() -> None:
    for host in ("127.0.0.1:8765", "localhost:8765", "[::1]:8765", "127.0.0.2"):
        assert (await ask(None, host=host))[0] == 200
    for host in ("evil.example:8765", "127.0.0.1.evil.example", "", "192.168.1.5:8765", "[::1", "a]b["):
        assert (await ask(None, host=host))[0] == 421
        assert (await ask(None, kind="websocket", host=host))[0] == "websocket.close"


async def test_pages_of_other_origins_reach_neither_pages_nor_sockets() -> None:
    assert (await ask(None, origin="http://127.0.0.1:8765"))[0] == 200
    assert (await ask(None, kind="websocket", origin="http://127.0.0.1:8765"))[0] == "websocket.accept"
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "null", "http://[::1", "http://a]b["):
        assert (await ask(None, origin=origin))[0] == 403
        assert (await ask(None, kind="websocket", origin=origin))[0] == "websocket.close"


async def test_token_is_asked_for_everywhere() -> None:
    for path in ("/", "/threads", "/mixquant/app.css", "/_nicegui/x.js"):
        assert (await ask(TOKEN, path=path))[0] == 401
        assert (await ask(TOKEN, path=path, query="token=wrong"))[0] == 401
        assert (await ask(TOKEN, path=path, authorization="Bearer wrong"))[0] == 401
        assert (await ask(TOKEN, path=path, cookie="mixquant_token=wrong"))[0] == 401
    assert (await ask(TOKEN, kind="websocket"))[0] == "websocket.close"
    assert (await ask(TOKEN, host="192.168.1.5:8765", authorization=f"Bearer {TOKEN}"))[0] == 200
    assert (await ask(TOKEN, kind="websocket", cookie=f"a=b; mixquant_token={TOKEN}"))[0] == "websocket.accept"


async def test_token_leaves_the_address_for_a_cookie() -> None:
    status, headers = await ask(TOKEN, path="/threads", query=f"window=all&token={TOKEN}")
    assert status == 303
    assert headers["location"] == "/threads?window=all"
    assert headers["set-cookie"] == f"mixquant_token={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    status, headers = await ask(TOKEN, path="//evil.example/", query=f"token={TOKEN}")
    assert not headers.get("location", "").startswith("//"), "no way out to another host"


async def test_headers_forbid_foreign_content() -> None:
    _, headers = await ask(None)
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http:" not in policy
    assert "*" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x"] == "y"


def test_addresses_open_to_the_network_need_a_token() -> None:
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")  # noqa: S104 # that is what is refused
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", TOKEN)  # noqa: S104
    with pytest.raises(ConfigError, match="would show every turn to the network"):
        check_address("0.0.0.0", None)  # noqa: S104
    with pytest.raises(ConfigError, match="letters, digits"):
        check_address("127.0.0.1", "sixteen; characters")
    with pytest.raises(ConfigError, match="at least 16"):
        check_address("127.0.0.1", "short")


def test_store_that_cannot_be_shown_is_told_at_once(tmp_path: Path) -> None:
    newer, foreign = tmp_path / "newer.sqlite", tmp_path / "foreign.sqlite"
    connection = connect_writer(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    foreign.write_bytes(b"x" * 2000)
    with pytest.raises(StoreError, match="newer mixquant-agents"):
        serve(newer)
    with pytest.raises(StoreError, match="not a SQLite database"):
        serve(foreign)
    with pytest.raises(ConfigError):
        serve(tmp_path / "x.sqlite", host="0.0.0.0")  # noqa: S104


@pytest.mark.slow
def test_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="give another host or port"):
            serve(tmp_path / "x.sqlite", port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match="cannot listen on"):
        serve(tmp_path / "x.sqlite", host="no.such.host.invalid", token=TOKEN)


@pytest.mark.slow
def test_pages_never_write(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn())
    recorder.close()
    before = path.read_bytes()
    code = (
        "import sys; from pathlib import Path; from mixquant_agents.dashboard import views, compare\n"
        "from mixquant_agents.telemetry.store.reader import TurnStore\n"
        "store = TurnStore(sys.argv[1]); q = {'window': 'all'}\n"
        "pages = [views.overview_page(store, q), views.threads_page(store, q), compare.compare_page(store, q)]\n"
        "pages.append(views.thread_page(store, {'id': 'thread'}))\n"
        "assert all(len(page) > 500 for page in pages)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)  # noqa: S603 # our own code
    assert path.read_bytes() == before
