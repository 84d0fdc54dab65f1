"""A fake server, and an engine on it."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from openai_double import Server

from mixquant_agents import OpenAIEngine


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    fake = Server()
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fake.complete)
    app.router.add_post("/v1/moved/chat/completions", fake.moved)
    app.router.add_get("/v1/moved/models", fake.moved)
    app.router.add_post("/tokenize", fake.tokenize)
    app.router.add_get("/empty/models", fake.no_models)
    app.router.add_post("/empty/tokenize", fake.pieces)
    app.router.add_get("/page/models", fake.page)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield fake
    fake.hang = False
    await runner.cleanup()


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[OpenAIEngine]:
    made = OpenAIEngine("m", base_url=server.url, max_retries=0)
    yield made
    await made.aclose()
