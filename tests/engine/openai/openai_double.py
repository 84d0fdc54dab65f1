"""A fake ``vllm serve``: chat completions over server-sent events, on a real HTTP server."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web


class Server:
    """A fake ``vllm serve``; what it answers is set by each test."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.chunks: list[Any] = []
        """Events in JSON, or blocks of the body in bytes."""
        self.done = True
        self.whole: web.Response | None = None
        """What to answer instead of events."""
        self.strict: set[str] = set()
        """Fields that the server does not know, and so refuses."""
        self.status: tuple[int, dict[str, Any]] | None = None
        self.strict_hint = ""
        self.models_list: Any = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]}
        self.models_status = 200
        self.models_stall = 0.0
        self.paths: list[str] = []
        self.moved_by, self.moved_to = 307, ""
        self.hang = False
        self.stall = 0.0
        self.break_off = False
        self.disconnected = asyncio.Event()
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        self.paths.append(str(request.rel_url))
        await asyncio.sleep(self.models_stall)
        if isinstance(self.models_list, web.Response):
            return self.models_list
        return web.json_response(self.models_list, status=self.models_status)

    async def no_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": None})  # as Ollama says it

    async def pieces(self, _: web.Request) -> web.Response:
        return web.json_response({"tokens": []})

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text="<html></html>", content_type="text/html")

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"count": sum(len(message["content"].split()) for message in body["messages"])})

    async def moved(self, request: web.Request) -> web.Response:
        return web.Response(status=self.moved_by, headers={"Location": self.moved_to})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(str(request.rel_url))
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        if self.status is not None:
            return web.json_response(self.status[1], status=self.status[0])
        if refused := self.strict & fields(self.bodies[-1]):
            message = f"property {min(refused)!r} is unsupported.{self.strict_hint}"
            return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)
        if self.whole is not None:
            return self.whole
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for chunk in self.chunks:
                await response.write(chunk if isinstance(chunk, bytes) else event(chunk))
            await asyncio.sleep(self.stall)
            if self.break_off:
                request.transport.abort()
                return response
            while self.hang:
                await asyncio.sleep(0.01)
                await response.write(event(piece(content="x")))
            if self.done:
                await response.write(b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.disconnected.set()
            raise
        return response


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def fields(value: Any) -> set[str]:
    """All keys of a body, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list) else set()


def piece(finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(index: int, call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return piece(tool_calls=[{"index": index, "id": call_id, "type": "function", "function": function}])


def usage(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **details}
    return {**piece(), "choices": [], "usage": counts}
