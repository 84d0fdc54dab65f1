"""A proxy that breaks what goes through it: one exchange a connection, each with the next fault of a list."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one exchange; nothing by default.

    Attributes:
        answer: the whole answer, given instead of the server's.
        slow_head: seconds before the answer's first byte.
        after: the answer stops behind these bytes …
        cut: … and the connection is reset (by default it stays, silent).
        closed: … and the connection is closed as after a whole answer.
        replace: bytes of the answer → what stands there instead.
    """

    answer: bytes | None = None
    slow_head: float = 0.0
    after: bytes | None = None
    cut: bool = False
    closed: bool = False
    replace: Mapping[bytes, bytes] | None = None


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An answer with this status and an error's body."""
    body = f'{{"error": {{"message": "{message}", "code": {code}}}}}'.encode()
    phrases = {known.value: known.phrase for known in HTTPStatus}
    head = [
        f"HTTP/1.1 {code} {phrases.get(code, 'Of a gateway')}",
        "Content-Type: application/json",
        "Connection: close",
    ]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return Fault(answer="\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)


class FaultProxy:
    """Listens on the loopback interface; ``async with`` opens and closes it.

    Args:
        upstream: port of the server.
        tls: to be spoken to the client.

    Attributes:
        faults: those of the next chat completions, first one first.
        exchanges: chat completions that reached the proxy.
        most_open: most connections that were open together.
    """

    def __init__(self, upstream: int, tls: ssl.SSLContext | None = None) -> None:
        self.faults: list[Fault] = []
        self.exchanges = 0
        self.most_open = 0
        self._upstream, self._tls = upstream, tls
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Listen; after :meth:`stop` on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and reset the open ones, as the death of a server does."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.most_open = max(self.most_open, len(self._open))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            fault = Fault()
            if "/chat/completions" in lines[0]:
                self.exchanges += 1
                fault = self.faults.pop(0) if self.faults else fault
            kept = [line for line in lines if line and not line.lower().startswith("connection:")]
            kept[0] = kept[0].replace("HTTP/1.1", "HTTP/1.0")  # the answer then has no chunks that a change would break
            request = "\r\n".join([*kept, "Connection: close", "", ""]).encode() + body
            await self._answer(request, writer, fault)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter, fault: Fault) -> None:
        await asyncio.sleep(fault.slow_head)
        if fault.answer is not None:
            writer.write(fault.answer)
            await writer.drain()
            return
        reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        upstream.write(request)
        answer = b""
        try:
            while block := await reader.read(65_536):
                answer += block
            for old, new in (fault.replace or {}).items():
                assert old in answer, "this fault must change something"
                answer = answer.replace(old, new)
            if fault.after is None:
                writer.write(answer)
                await writer.drain()
                return
            assert fault.after in answer, "this fault must cut something off"
            writer.write(answer[: answer.index(fault.after) + len(fault.after)])
            await writer.drain()
            if fault.closed:
                return
            if fault.cut:
                await asyncio.sleep(0.05)  # let the client read what was sent before the reset throws it away
                writer.transport.abort()
                return
            await asyncio.sleep(30)
        finally:
            upstream.close()
