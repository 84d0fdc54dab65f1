"""What went wrong is told in words that hold neither keys nor prompts, and sent to nobody else."""

import pickle
import traceback
from typing import Any

import pytest
from aiohttp import web
from openai_double import Server, piece

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.openai import engine as engine_module
from mixquant_agents.errors import ContextOverflowError, MixQuantError, RemoteEngineError, RequestError

KEY, HEADER, PROMPT = "sk-0123456789abcdef", "header-secret-42", "The code of the safe is 4-8-15-16."


def ask() -> EngineRequest:
    return EngineRequest(request_id="r", messages=[{"role": "user", "content": PROMPT}])


async def error_of(engine: OpenAIEngine) -> MixQuantError:
    with pytest.raises(MixQuantError) as caught:
        async for _ in engine.stream(ask()):
            pass
    return caught.value


@pytest.fixture
async def elsewhere() -> Any:
    """A server at another origin, which notes whatever reaches it."""
    reached: list[Any] = []

    async def note(request: web.Request) -> web.Response:
        reached.append((dict(request.headers), await request.text()))
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", reached
    await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(server: Server, elsewhere: Any, status: int) -> None:
    origin, reached = elsewhere
    server.moved_by, server.moved_to = status, f"{origin}/v1/chat/completions?token=abc"
    engine = OpenAIEngine(
        "m", base_url=f"{server.url}/moved", api_key=KEY, headers={"X-Api-Key": HEADER}, max_retries=1
    )
    await engine.start()
    assert engine.info.max_model_len is None
    error = await error_of(engine)
    await engine.aclose()
    assert reached == []
    assert isinstance(error, RemoteEngineError)
    assert f"redirects to '{origin}/v1/chat/completions'" in str(error)


ECHO = f"Bad request: {{'Authorization': 'Bearer {KEY}', 'X-Api-Key': '{HEADER}', 'content': '{PROMPT}'}}"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": ECHO}},
        {"error": ECHO},
        {"detail": [{"loc": ["body", "messages"], "msg": "wrong", "input": {"content": PROMPT, "key": KEY}}]},
        {"message": ECHO},
        {"odd": ECHO},
    ],
)
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
async def test_echo_of_the_server_is_struck(server: Server, status: int, body: Any) -> None:
    server.status = status, body
    engine = OpenAIEngine("m", base_url=server.url, api_key=KEY, headers={"X-Api-Key": HEADER}, max_retries=0)
    error = await error_of(engine)
    await engine.aclose()
    told = "".join(traceback.format_exception(error))
    for secret in (KEY, HEADER, PROMPT):
        assert secret not in told
    assert error.__context__ is None or not any(word in repr(error.__context__) for word in (KEY, HEADER, PROMPT))


@pytest.mark.parametrize("streamed", [True, False])
async def test_echo_in_an_answer_is_struck(server: Server, streamed: bool) -> None:
    if streamed:
        server.chunks = [piece(content="a"), {"error": {"message": ECHO}}]
    else:
        server.whole = web.Response(text=f"<html>{ECHO}</html>", content_type="text/html")
    engine = OpenAIEngine("m", base_url=server.url, api_key=KEY, headers={"X-Api-Key": HEADER}, max_retries=0)
    error = await error_of(engine)
    await engine.aclose()
    for secret in (KEY, HEADER, PROMPT):
        assert secret not in "".join(traceback.format_exception(error))


async def test_login_in_the_address_is_not_told() -> None:
    engine = OpenAIEngine("m", base_url="http://me:pass-word@127.0.0.1:9/v1", max_retries=0)
    error = await error_of(engine)
    assert "pass-word" not in "".join(traceback.format_exception(error))
    assert "http://127.0.0.1:9/v1" in str(error)
    await engine.aclose()


async def test_long_words_of_a_server_are_cut(server: Server, engine: OpenAIEngine) -> None:
    server.status = 400, {"error": {"message": "x" * 100_000}}
    assert len(str(await error_of(engine))) < 1_000


async def test_fault_of_our_own_is_told_as_ours(
    server: Server, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("unhashable type: 'slice'")

    monkeypatch.setattr(engine_module.Answer, "take", broken)
    server.chunks = [piece(content="a")]
    error = await error_of(engine)
    assert isinstance(error, RemoteEngineError)
    assert "a fault of mixquant-agents" in str(error)
    assert "correct base_url" not in str(error)


@pytest.mark.parametrize(
    ("words", "tokens", "window"),
    [
        ("This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens",
         5000, 4096),
        ("maximum context length is 4096 tokens. However, you requested 100 output tokens and your prompt contains at "
         "least 4090 input tokens", 4090, 4096),
        ("This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens.",
         5000, 4097),
        ("maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 in the "
         "completion).", 4900, 4096),
        ("Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
         "5000 tokens: 4900 tokens from the input messages and 100 tokens for the completion.", 4900, 4096),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", 5000, 4096),
        ("request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it", 5000, 4096),
        ("Prompt contains 40000 tokens, too large for model with 32768 maximum context length", 40000, 32768),
        ("`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 20 `max_new_tokens`",
         5000, 4096),
        ("This endpoint's maximum context length is 8192 tokens. However, you requested about 12000 tokens (11000 of "
         "text input, 1000 in the output).", 11000, 8192),
    ],
)  # fmt: skip
async def test_overflow_in_the_words_of_servers(
    server: Server, engine: OpenAIEngine, words: str, tokens: int, window: int
) -> None:
    server.status = 400, {"error": {"message": words, "code": 400}}
    error = await error_of(engine)
    assert isinstance(error, ContextOverflowError)
    assert (error.prompt_tokens, error.max_model_len) == (tokens, window)


@pytest.mark.parametrize(
    ("details", "tokens", "window"),
    [
        ({"message": "Please reduce the length of the messages or completion."}, None, None),
        ({"message": "too large", "code": "context_length_exceeded"}, None, None),
        ({"message": "This model's maximum context length is 4096 tokens. However, your prompt contains at least 90000 "
          "characters. Please reduce the length of the input prompt."}, None, 4096),
        ({"message": "the request exceeds the available context size", "type": "exceed_context_size_error",
          "n_prompt_tokens": 5000, "n_ctx": 4096}, 5000, 4096),
        ({"message": "prompt is too long: 210000 tokens > 200000 maximum"}, None, None),
    ],
)  # fmt: skip
async def test_overflow_of_which_not_all_is_told(
    server: Server, engine: OpenAIEngine, details: dict[str, Any], tokens: int | None, window: int | None
) -> None:
    server.status = 400, {"error": details}
    error = await error_of(engine)
    assert isinstance(error, ContextOverflowError)
    assert (error.prompt_tokens, error.max_model_len) == (tokens, window)
    assert "None" not in str(error)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (str(copied), copied.max_model_len) == (str(error), window)


async def test_refusal_that_is_no_overflow_stays_a_refusal(server: Server, engine: OpenAIEngine) -> None:
    server.status = 400, {"error": {"message": "the context window of 4096 is not a multiple of 3"}}
    assert type(await error_of(engine)) is RequestError


async def test_errors_are_recorded_without_keys(server: Server) -> None:
    server.status = 400, {"error": {"message": ECHO}}
    engine = OpenAIEngine("m", base_url=server.url, api_key=KEY, headers={"X-Api-Key": HEADER}, max_retries=0)
    records: list[Any] = []
    model = MixQuantChatModel(engine=engine, recorders=[records.append])
    with pytest.raises(RequestError):
        await model.ainvoke(PROMPT)
    await model.aclose()
    await engine.aclose()
    assert records[0].error is not None
    for secret in (KEY, HEADER, PROMPT):
        assert secret not in records[0].error
