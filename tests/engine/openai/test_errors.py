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
from mixquant_agents.errors import (
    ConfigError,
    ContextOverflowError,
    MixQuantError,
    ModelNotFoundError,
    RemoteEngineError,
    RequestError,
)

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
        ("Input validation error: `inputs` must have less than 4095 tokens. Given: 5000", 5000, 4095),
        ("The input token count (5000) exceeds the maximum number of tokens allowed (4096).", 5000, 4096),
        ("This model's maximum prompt length is 4096 but the request contains 5000 tokens.", 5000, 4096),
        ("too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.", 5000, 4081),
        ("The prompt is too long: 5000, model maximum context length: 4096", 5000, 4096),
        ("prompt is too long: 5000 tokens > 4096 maximum", 5000, 4096),
        ("maximum context length is 4096 tokens, however you requested 5000 tokens (4900 in your prompt; 100 for the "
         "completion)", 4900, 4096),
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
        ({"message": "prompt is longer than the context window"}, None, None),
        ({"message": "The number of tokens to keep from the initial prompt is greater than the context length."},
         None, None),
        ({"message": "Range of input length should be [1, 4096]"}, None, 4096),
        ({"message": "Provider returned error", "metadata": {"raw": "maximum context length is 4096 tokens. However, "
          "your messages resulted in 5000 tokens."}}, 5000, 4096),
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


@pytest.mark.parametrize(
    "words",
    [
        "the context window of 4096 is not a multiple of 3",
        "the request contains 5 images, which cannot exceed 4",
        "tool_choice 'x' exceeds what is allowed",
    ],
)
async def test_refusal_that_is_no_overflow_stays_a_refusal(server: Server, engine: OpenAIEngine, words: str) -> None:
    server.status = 400, {"error": {"message": words}}
    assert type(await error_of(engine)) is RequestError


async def test_overflow_with_a_servers_status_is_one(server: Server, engine: OpenAIEngine) -> None:
    server.status = 500, {"error": {"code": 500, "message": "context size has been exceeded", "type": "server_error"}}
    assert isinstance(await error_of(engine), ContextOverflowError)


@pytest.mark.parametrize(
    "details",
    [
        {"message": "no such thing", "code": "model_not_found"},
        {"message": 'Invalid model identifier "m". Please specify a valid downloaded model'},
        {"message": "Invalid model name passed in model=m. Call `/v1/models` to view available models for your key."},
        {"message": "m is not a valid model ID"},
    ],
)
async def test_missing_model_is_one_though_the_server_calls_it_a_bad_request(
    server: Server, engine: OpenAIEngine, details: dict[str, Any]
) -> None:
    server.status = 400, {"error": details}
    assert isinstance(await error_of(engine), ModelNotFoundError)


async def test_words_of_the_provider_behind_a_server_are_told(server: Server, engine: OpenAIEngine) -> None:
    server.status = 400, {"error": {"message": "Provider returned error", "metadata": {"raw": "no tools with images"}}}
    assert "Provider returned error: no tools with images" in str(await error_of(engine))


@pytest.mark.parametrize("code", [429, "429", 529])
async def test_status_in_an_answer_tells_whether_the_trouble_passes(
    server: Server, engine: OpenAIEngine, code: Any
) -> None:
    server.chunks = [{"error": {"message": "slow down", "code": code}}]
    error = await error_of(engine)
    assert isinstance(error, RemoteEngineError)
    assert (error.status, error.retryable) == (int(code), True)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:pass-word@127.0.0.1:99999/v1",
        "http://me:pass-word@127.0.0.1:abc/v1",
        "http://me:pass-word@[::1/v1",
        "http://me:pass-word@127.0.0.1:0/v1",
        "http://me:pass-word@/v1",
        "http://:8000/v1?key=pass-word",
        "ftp://me:pass-word@a/v1",
        "http://me:pass-word@a b/v1",
        "127.0.0.1:8000/v1",
    ],
)
def test_address_that_is_none_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(ConfigError, match="give an address such as") as caught:
        OpenAIEngine("m", base_url=address)
    assert "pass-word" not in "".join(traceback.format_exception(caught.value))


def test_address_of_a_call_is_told_the_one_before_it() -> None:
    with pytest.raises(ConfigError, match=r"give it without its end, http://a:8000/v1$"):
        OpenAIEngine("m", base_url="http://me:pass-word@a:8000/v1/chat/completions/?key=pass-word")


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
