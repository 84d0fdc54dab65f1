"""Servers and the router before them, started together and ended together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mixquant_agents.engine.vllm.args import free_port
from mixquant_agents.errors import EngineStartError
from mixquant_agents.serving.command import ServerCommand
from mixquant_agents.serving.health import serve_view, server_health, summary_line
from mixquant_agents.serving.process import OwnedProcess
from mixquant_agents.serving.router import router_command

__all__ = ["Fleet", "free_port"]

ROUTER_LIVES, ROUTER_READY = "/liveness", "/readiness"
LOOK_SECONDS = 1.0
"""Between two looks at servers that start; and at all of them, for changes to tell."""


class Fleet:
    """Servers of this machine, servers elsewhere, and a router before them where there is more than one.

    Args:
        commands: servers to start.
        hosts: addresses of servers that run already, without ``/v1``.
        host, port: where the router answers; without a router, the one server does.
        view_port: where the health of all is answered as JSON, on ``host``; ``None`` for nowhere.
        routing: one of :data:`~mixquant_agents.serving.router.POLICIES`.
        logs: folder for the processes' logs.
        say: gets a line for each change.
    """

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        *,
        hosts: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 8000,
        view_port: int | None = None,
        routing: str = "cache_aware",
        logs: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.servers = [
            OwnedProcess(
                f"replica-{number}",
                command.arguments,
                url=command.url,
                log=logs / f"replica-{number}.log",
                env=command.env,
            )
            for number, command in enumerate(commands)
        ]
        self.hosts = [address.rstrip("/").removesuffix("/v1") for address in hosts]
        self.router: OwnedProcess | None = None
        addresses = [*(server.url for server in self.servers), *self.hosts]
        if len(addresses) > 1 or not self.servers:
            words = router_command(addresses, host=host, port=port, prometheus_port=free_port(), policy=routing)
            self.router = OwnedProcess("router", words, url=f"http://{host}:{port}", log=logs / "router.log")
        self.url = (self.router.url if self.router is not None else addresses[0]) + "/v1"
        self._view = (host, view_port) if view_port is not None else None
        self._view_server: asyncio.Server | None = None
        self._say = say
        self._ending = False
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def start(self, patience: float = 900.0) -> None:
        """Start everything, and wait until each server and the router answer.

        Raises:
            EngineStartError: one ended, or does not answer in time; with the end of its log.
        """
        begin = time.monotonic()
        if self._view is not None:
            host, port = self._view
            try:
                self._view_server = await serve_view(host, port, self.health)
            except OSError as error:
                raise EngineStartError(f"the health of all cannot be answered at {host}:{port}: {error}") from error
        for server in self.servers:
            await server.start()
        count = len(self.servers)
        if count:
            self._say(f"starting {count} servers" if count > 1 else "starting the server")
        await self._wait_for(self.servers, begin + patience)
        if self.router is not None:
            await self._tell_of_hosts()
            number = count + len(self.hosts)
            self._say(f"starting the router before {number} server{'s' if number > 1 else ''}")
            await self.router.start()
            await self._wait_for([self.router], begin + patience, ROUTER_READY)
        self._say(f"ready after {time.monotonic() - begin:.0f} s: {self.url}")
        self._watching = asyncio.create_task(self._watch(), name="mixquant-fleet")

    async def _tell_of_hosts(self) -> None:
        """Say which servers elsewhere do not answer: the router waits for one that does."""
        for address in self.hosts:
            state = (await server_health(address, address, absent="unreachable"))["state"]
            if state != "ready":
                self._say(f"{address} is {state}: start it, or correct --hosts")

    async def _wait_for(self, processes: Sequence[OwnedProcess], deadline: float, path: str = "/health") -> None:
        waiting = list(processes)
        while waiting:
            for process in list(waiting):
                if process.exit_code is not None:
                    raise process.failure()
                if (await server_health(process.name, process.url, path=path))["state"] == "ready":
                    waiting.remove(process)
            if waiting and time.monotonic() > deadline:
                raise EngineStartError(f"{waiting[0].name} does not answer; its log is {waiting[0].log}")
            if waiting:
                await asyncio.sleep(LOOK_SECONDS)

    async def health(self) -> dict[str, Any]:
        """How each server is: ``{"ready": number of them, "servers": […], "router": {…} | None}``."""
        servers = await asyncio.gather(
            *(server_health(each.name, each.url, exit_code=each.exit_code) for each in self.servers),
            *(server_health(address, address, absent="unreachable") for address in self.hosts),
        )
        router = None
        if self.router is not None:
            code = self.router.exit_code
            router = await server_health("router", self.router.url, exit_code=code, path=ROUTER_LIVES)
        ready = sum(server["state"] == "ready" for server in servers)
        return {"url": self.url, "ready": ready, "servers": servers, "router": router}

    async def run(self) -> int:
        """Wait until every server has ended, or the router has; the exit code of the one that ended last."""
        watched = [self.router] if self.router is not None else self.servers
        code = 0
        for ended in asyncio.as_completed([process.wait() for process in watched]):
            code = await ended
        return code

    async def _watch(self) -> None:
        """Tell what changes."""

        async def ended(server: OwnedProcess) -> None:
            code = await server.wait()
            if not self._ending:
                servers = (await self.health())["servers"]
                self._say(f"{server.name} ended with code {code}: {summary_line(servers)}")

        await asyncio.gather(*(ended(server) for server in self.servers))

    async def end(self) -> None:
        """End the router, then the servers. Idempotent."""
        self._ending = True
        if self._view_server is not None:
            self._view_server.close()
        if self.router is not None:
            await self.router.end(5.0)
        await asyncio.gather(*(server.end() for server in self.servers))
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
