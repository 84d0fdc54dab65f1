"""The chat model on a server: what it sends, and what it learns."""

from openai_double import Server, piece, usage

from mixquant_agents import MixQuantChatModel, OpenAIEngine


async def test_profile_learns_the_window_that_the_server_tells(server: Server) -> None:
    server.chunks = [piece(content="Hello"), piece(finish="stop"), usage(3, 1)]
    model = MixQuantChatModel(model="m", base_url=server.url)
    assert "max_input_tokens" not in model.profile
    await model.bind(temperature=0).ainvoke("hi")
    assert model.profile["max_input_tokens"] == 4096
    await model.aclose()


async def test_profile_of_an_engine_that_has_asked_knows_the_window(engine: OpenAIEngine) -> None:
    await engine.start()
    assert MixQuantChatModel(engine=engine).profile["max_input_tokens"] == 4096


async def test_standard_names_are_sent(server: Server) -> None:
    server.chunks = [piece(content="Hello"), piece(finish="stop"), usage(3, 1)]
    model = MixQuantChatModel(model="m", base_url=server.url, api_key="secret", reasoning_effort="low", user="ann")
    await model.ainvoke("hi", max_completion_tokens=5)
    (body,), (headers,) = server.bodies, server.headers
    assert (body["reasoning_effort"], body["user"], body["max_tokens"]) == ("low", "ann", 5)
    assert headers["Authorization"] == "Bearer secret"
    await model.aclose()
