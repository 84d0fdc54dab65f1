"""What every request to the dashboard passes: the token where one is set, known hosts, same-origin sockets, headers.

Pure ASGI, because the page's live updates come over a WebSocket, which ordinary HTTP middleware does not see.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry.loopback import is_loopback

__all__ = ["CONTENT_POLICY", "AccessGuard", "check_address"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "mixquant_token"
SHORTEST_TOKEN = 16

CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'"
)
"""The page may talk to this server alone, whatever it shows. (NiceGUI's own scripts are inline and compile
templates.)"""


def check_address(host: str, token: str | None) -> None:
    """Refuse to show turns to a network without a token.

    Raises:
        ConfigError: another address than loopback without a token, or a token that is easily guessed.
    """
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters; give at least {SHORTEST_TOKEN}, e.g. from 'openssl rand -hex 16'"
        )
    if token is not None and not re.fullmatch(r"[\w.~-]+", token, re.ASCII):
        raise ConfigError("the token may hold letters, digits and - . _ ~ only: it travels in addresses and cookies")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host {host!r} would show every turn to the network; keep 127.0.0.1, or give a token "
            "(--token, or the environment variable MIXQUANT_DASHBOARD_TOKEN)"
        )


class AccessGuard:
    """Wraps the application.

    Args:
        token: asked for on every request: as ``Authorization: Bearer``, or once as ``?token=`` (then kept in a cookie
            that scripts cannot read). ``None``: none is asked for, and only loopback names are answered, so that a
            page of another site cannot reach this one by rebinding its name to this machine.
    """

    def __init__(self, app: App, token: str | None = None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        if scope["type"] == "http" and self._token is not None and (redirect := self._keep_token(scope)):
            await _answer(send, 303, b"", redirect)
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_parts(f"//{host}")[0]):
            return 421, f"this dashboard answers to loopback names only, not to {host!r}"
        origin = headers.get("origin")
        if origin and _parts(origin)[1] != host:
            return 403, "requests from pages of another origin are refused"
        if self._token is not None and not self._knows_token(scope, headers):
            return (
                401,
                "a token is needed: open the address that was printed at start, or send 'Authorization: Bearer …'",
            )
        return None

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        given += [
            value for name, value in parse_qsl(scope.get("query_string", b"").decode("latin-1")) if name == "token"
        ]
        try:
            cookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookie = SimpleCookie()
        if COOKIE in cookie:
            given.append(cookie[COOKIE].value)
        expected = (self._token or "").encode()
        return any([hmac.compare_digest(value.encode(), expected) for value in given])  # noqa: C419 # all are compared

    def _keep_token(self, scope: Scope) -> list[tuple[bytes, bytes]] | None:
        """Answer headers that move a token from the address into the cookie."""
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        if scope["path"].startswith("/_nicegui") or not any(name == "token" for name, _ in query):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # One leading slash: "//host" would lead to another host.
        target = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
        cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        return [(b"location", target.encode()), (b"set-cookie", cookie.encode("latin-1"))]


def _parts(address: str) -> tuple[str, str]:
    """Host name and network location of an address; nothing that could be asked for where it is malformed."""
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.netloc
    except ValueError:
        return "", "[malformed"


def _with_headers(send: Send) -> Send:
    extra = [
        (b"content-security-policy", CONTENT_POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return sending


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    await _answer(send, status, f"{reason}\n".encode(), [(b"content-type", b"text/plain; charset=utf-8")])


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
