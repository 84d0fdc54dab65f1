"""A fake ``vllm serve``: chat completions over server-sent events, on a real HTTP server."""

import asyncio
import json
from typing import Any

from aiohttp import web


class Server:
    """A fake ``vllm serve``; what it answers is set by each test."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.chunks: list[Any] = []
        self.status: tuple[int, dict[str, Any]] | None = None
        self.hang = False
        self.break_off = False
        self.disconnected = asyncio.Event()
        self.url = ""

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]})

    async def no_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": None})  # as Ollama says it

    async def pieces(self, _: web.Request) -> web.Response:
        return web.json_response({"tokens": []})

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text="<html></html>", content_type="text/html")

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"count": sum(len(message["content"].split()) for message in body["messages"])})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        if self.status is not None:
            return web.json_response(self.status[1], status=self.status[0])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for chunk in self.chunks:
                await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if self.break_off:
                request.transport.abort()
                return response
            while self.hang:
                await asyncio.sleep(0.01)
                await response.write(f"data: {json.dumps(piece(content='x'))}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionResetError, asyncio.CancelledError):
            self.disconnected.set()
            raise
        return response


def piece(finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(index: int, call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return piece(tool_calls=[{"index": index, "id": call_id, "type": "function", "function": function}])


def usage(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **details}
    return {**piece(), "choices": [], "usage": counts}
