"""How the servers are: read from each one's ``/health`` and ``/metrics``, for people and probes."""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

__all__ = ["figures", "serve_view", "server_health", "summary_line"]

_PATIENCE = 3.0
"""Seconds for an answer."""
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? ([0-9.eE+-]+|NaN)$")
_SHOWN = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
    "mixquant:prompt_rows_total": "prompt_rows",
}
"""Sums of vLLM's metrics → names in the view."""


async def server_health(
    name: str, url: str, *, exit_code: int | None = None, path: str = "/health", absent: str = "starting"
) -> dict[str, Any]:
    """One server: ``state`` is ``"ready"``, ``absent`` while it does not answer, or ``"ended"``.

    Args:
        path: what answers 200 when it is ready. A router's ``/health`` speaks of its servers, its ``/liveness`` of
            itself.
    """
    if exit_code is not None:
        return {"name": name, "url": url, "state": "ended", "exit_code": exit_code}
    try:
        await asyncio.to_thread(_get, f"{url}{path}", _PATIENCE)
    except OSError:
        return {"name": name, "url": url, "state": absent}
    try:
        text = await asyncio.to_thread(_get, f"{url}/metrics", _PATIENCE)
    except OSError:  # some servers have no metrics
        text = ""
    return {"name": name, "url": url, "state": "ready", **figures(text)}


def figures(text: str) -> dict[str, float]:
    """What is shown of a server's metrics; what it does not tell is left out."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is not None and match[1] in _SHOWN and match[2] != "NaN":
            name = _SHOWN[match[1]]
            sums[name] = sums.get(name, 0.0) + float(match[2])
    return sums


@functools.cache
def _direct() -> urllib.request.OpenerDirector:
    """Opens servers as the router does: ``http_proxy`` of the environment is for other machines than one's own."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(url: str, timeout: float) -> str:
    try:
        with _direct().open(url, timeout=timeout) as answer:
            text: str = answer.read().decode("utf-8", "replace")
            return text
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answered {error.code}") from error
    except http.client.HTTPException as error:  # it ended, or was killed, in the middle of an answer
        raise OSError(f"{url} broke off its answer ({type(error).__name__})") from error


async def serve_view(host: str, port: int, look: Callable[[], Awaitable[dict[str, Any]]]) -> asyncio.Server:
    """Answer ``GET /`` with the health of all, from ``look``, as JSON (503 while none is ready), until it is closed.

    Raises:
        OSError: the port is taken, or no address of this machine.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            view = await look()
            body = json.dumps(view).encode()
            status = "200 OK" if view["ready"] else "503 Service Unavailable"
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # somebody who asked no question
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port)


def summary_line(servers: Sequence[dict[str, Any]]) -> str:
    """One line for people: ``replica-0 ready (3 running), replica-1 ended (-9)``."""
    parts = []
    for server in servers:
        more = ""
        if server["state"] == "ready" and "running" in server:
            more = f" ({server['running']:.0f} running, {server.get('waiting', 0):.0f} waiting)"
        elif server["state"] == "ended":
            more = f" ({server['exit_code']})"
        parts.append(f"{server['name']} {server['state']}{more}")
    return ", ".join(parts)
