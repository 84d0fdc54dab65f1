"""What is sent: well-formed JSON, and only the fields that a strict server takes."""

import pickle
from typing import Any

import pytest
from aiohttp import web
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from openai_double import Server, piece, usage
from pydantic import SecretStr

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.base import EngineRequest, NamedTool, Sampling
from mixquant_agents.engine.openai.engine import _certificates
from mixquant_agents.engine.openai.request import Dialect, wire_body, wire_messages
from mixquant_agents.errors import ConfigError, InvalidMessagesError, MixQuantError, RequestError

USER = [{"role": "user", "content": "hi"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
STOP = piece(finish="stop")


def ask(**fields: Any) -> EngineRequest:
    return EngineRequest(**{"request_id": "r", "messages": USER, **fields})


async def text_of(engine: OpenAIEngine, request: EngineRequest) -> str:
    return "".join([delta.content async for delta in engine.stream(request)])


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_goes_back_by_the_name_it_came_by(server: Server, engine: OpenAIEngine, field: str) -> None:
    server.strict = {"reasoning", "reasoning_content"} - {field}
    server.chunks = [piece(**{field: "So."}), piece(content="Hello"), STOP]
    model = MixQuantChatModel(engine=engine)
    answer = await model.ainvoke("hi")
    await model.ainvoke([HumanMessage("hi"), answer, HumanMessage("and?")])
    sent = server.bodies[-1]["messages"][1]
    assert sent[field] == "So."
    assert set(sent) <= {"role", "content", "tool_calls", "name", field}
    assert len(server.bodies) == 2, "nothing was refused"


async def test_reasoning_is_left_out_where_the_server_takes_none(server: Server, engine: OpenAIEngine) -> None:
    server.strict = {"reasoning", "reasoning_content"}
    server.chunks = [piece(content="Hello"), STOP]
    history = [{"role": "assistant", "content": "a", "reasoning_content": "So."}, *USER]
    for tries in (2, 3):  # refused once, then known
        assert await text_of(engine, ask(messages=history)) == "Hello"
        assert len(server.bodies) == tries
    assert server.bodies[-1]["messages"][0] == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "unknown",
    [
        {"stream_options"},
        {"parallel_tool_calls"},
        {"tool_choice"},
        {"strict"},
        {"top_logprobs"},
        {"stream_options", "parallel_tool_calls", "tool_choice", "strict", "top_logprobs"},
    ],
    ids=lambda fields: "+".join(sorted(fields)),
)
async def test_strict_server_gets_what_it_takes(server: Server, engine: OpenAIEngine, unknown: set[str]) -> None:
    server.strict = unknown
    server.chunks = [piece(content="Hello"), STOP, usage(3, 2)]
    request = ask(
        tools=[ADD],
        parallel_tool_calls=False,
        schema={"type": "object", "properties": {"a": {}}},
        sampling=Sampling(logprobs=0),
    )
    assert await text_of(engine, request) == "Hello"
    refusals = len(server.bodies)
    assert await text_of(engine, request) == "Hello"
    assert len(server.bodies) == refusals + 1, "what was learned is kept"
    assert "tools" in server.bodies[-1]
    assert server.bodies[-1]["response_format"]["json_schema"]["schema"]


async def test_json_mode_without_its_schema_where_the_server_knows_no_schemas(
    server: Server, engine: OpenAIEngine
) -> None:
    server.strict = {"json_schema"}
    server.chunks = [piece(content="{}"), STOP]
    request = ask(schema={"type": "object", "properties": {"a": {}}}, json_mode=True)
    for tries in (2, 3):  # refused once, then known
        assert await text_of(engine, request) == "{}"
        assert len(server.bodies) == tries
    assert server.bodies[-1]["response_format"] == {"type": "json_object"}
    with pytest.raises(RequestError, match="json_schema"):  # a schema that was asked for is never dropped
        await text_of(engine, ask(schema={"type": "object", "properties": {"a": {}}}))


async def test_max_tokens_by_its_other_name(server: Server, engine: OpenAIEngine) -> None:
    server.strict = {"max_tokens"}
    server.strict_hint = " Use 'max_completion_tokens' instead."
    server.chunks = [piece(content="Hello"), STOP]
    assert await text_of(engine, ask(sampling=Sampling(max_tokens=5))) == "Hello"
    assert server.bodies[-1]["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": Sampling(seed=3)},
        {"sampling": Sampling(top_k=3)},
        {"tools": [ADD], "tool_choice": NamedTool("add")},
        {"cache_salt": "s"},
    ],
    ids=["seed", "top_k", "tool_choice", "cache_salt"],
)
async def test_setting_of_the_caller_is_never_dropped(
    server: Server, engine: OpenAIEngine, fields: dict[str, Any]
) -> None:
    server.strict = {"seed", "top_k", "cache_salt", "tool_choice"}
    with pytest.raises(RequestError, match="unsupported"):
        await text_of(engine, ask(**fields))
    assert len(server.bodies) == 1


async def test_half_an_emoji_is_sent_as_a_replacement(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="Hello"), STOP]
    call = {"name": "add", "args": {"a": "\ud83d"}, "id": "1"}
    history = [
        HumanMessage("hi \udc00"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("half \ud83d of it", tool_call_id="1"),
    ]
    answer = await MixQuantChatModel(engine=engine).ainvoke(history)
    assert answer.content == "Hello"
    texts = [message["content"] for message in server.bodies[-1]["messages"]]
    assert texts == ["hi \ufffd", "", "half \ufffd of it"]


async def test_whole_request_is_well_formed(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [piece(content="Hello"), STOP]
    half = "\ud83d"
    tool = {"type": "function", "function": {"name": "add", "description": half, "parameters": {half: half}}}
    request = ask(
        messages=[{"role": "user", "content": half}],
        tools=[tool],
        schema={"title": half, "type": "object", "properties": {half: {"enum": [half]}}},
        sampling=Sampling(stop=(half,), extra={half: [half]}),
        cache_salt=half,
        chat_template_kwargs={half: half},
    )
    assert await text_of(engine, request) == "Hello"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {1}, object()], ids=repr)
def test_value_that_json_has_not_is_named(value: Any) -> None:
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        wire_body(ask(sampling=Sampling(extra={"a": value})), "m", Dialect())
    with pytest.raises(InvalidMessagesError, match="message 2 cannot be written as JSON"):
        wire_messages([*USER, {"role": "user", "content": value}], Dialect())


def test_value_nested_too_deeply_is_named() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested too deeply"):
        wire_body(ask(sampling=Sampling(extra={"a": deep})), "m", Dialect())


def test_keys_of_numbers_are_texts() -> None:
    body = wire_body(ask(sampling=Sampling(extra={"logit_bias": {42: 5}})), "m", Dialect())
    assert body["extra_body"] == {"logit_bias": {"42": 5}}


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": "my\nsecret"},
        {"headers": {"X-Name": "my\r\nsecret"}},
        {"headers": {"X Name": "a"}},
        {"headers": {"X-Name": "日本"}},
        {"headers": {"X-Name": 3}},
        {"max_model_len": 0},
    ],
    ids=repr,
)
def test_setting_that_cannot_be_sent_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine("m", **settings)
    assert "secret" not in str(caught.value)


async def test_key_may_be_a_secret(server: Server) -> None:
    server.chunks = [piece(content="Hello"), STOP]
    engine = OpenAIEngine("m", base_url=server.url, api_key=SecretStr("secret"))
    await text_of(engine, ask())
    assert server.headers[0]["Authorization"] == "Bearer secret"
    await engine.aclose()


async def test_key_from_a_file_loses_its_line_end(server: Server) -> None:
    server.chunks = [piece(content="Hello"), STOP]
    engine = OpenAIEngine("m", base_url=server.url, api_key="secret\n")
    assert await text_of(engine, ask()) == "Hello"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    await engine.aclose()


async def test_copy_by_pickle_answers(server: Server) -> None:
    server.chunks = [piece(reasoning_content="So."), piece(content="Hello"), STOP]
    engine = OpenAIEngine("m", base_url=server.url, api_key="k", headers={"X-Name": "a"})
    model = MixQuantChatModel(engine=engine)
    await model.ainvoke("hi")
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
    assert (await copy.ainvoke("hi")).content == "Hello"
    assert server.headers[-1]["X-Name"] == "a"
    assert copy.engine.policy == engine.policy
    await engine.aclose()
    assert (await copy.ainvoke("hi")).content == "Hello", "the copy has connections of its own"
    await copy.engine.aclose()


async def test_window_is_the_servers_or_the_callers(server: Server, engine: OpenAIEngine) -> None:
    assert engine.info.max_model_len is None
    await engine.start()
    assert engine.info.max_model_len == 4096
    named = OpenAIEngine("m", base_url=server.url, max_model_len=2048)
    assert named.info.max_model_len == 2048
    await named.start()
    assert named.info.max_model_len == 2048
    await named.aclose()


@pytest.mark.parametrize(
    ("entry", "window"),
    [
        ({"max_model_len": "8192"}, None),
        ({"max_model_len": -1}, None),
        ({"max_model_len": True}, None),
        ({"max_model_len": None, "context_length": 8192}, 8192),
        ({"context_window": 8192}, 8192),
    ],
)
async def test_window_that_is_none_is_unknown(
    server: Server, engine: OpenAIEngine, entry: dict[str, Any], window: int | None
) -> None:
    server.models_list = {"data": [None, {"id": "other", "max_model_len": 1}, {"id": "m", **entry}]}
    await engine.start()
    assert engine.info.max_model_len == window


@pytest.mark.parametrize("listed", [[], {}, {"data": None}, {"data": {}}, {"models": []}], ids=repr)
async def test_list_of_models_may_be_anything(server: Server, engine: OpenAIEngine, listed: Any) -> None:
    server.models_list = listed
    await engine.start()
    assert engine.info.max_model_len is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [("ok", "text/plain"), ("{", "application/json"), ("", "application/json"), ("null", "application/json")],
)
async def test_list_of_models_that_is_none_costs_no_turn(
    server: Server, engine: OpenAIEngine, text: str, kind: str
) -> None:
    server.models_list = web.Response(text=text, content_type=kind)
    server.chunks = [piece(content="Hello"), piece(finish="stop")]
    assert (await MixQuantChatModel(engine=engine).ainvoke("hi")).content == "Hello"


async def test_list_of_models_that_does_not_come_costs_no_turn(server: Server) -> None:
    server.models_stall = 30.0
    server.chunks = [piece(content="Hello"), piece(finish="stop")]
    engine = OpenAIEngine("m", base_url=server.url, connect_timeout=0.2)
    assert (await MixQuantChatModel(engine=engine).ainvoke("hi")).content == "Hello"
    await engine.aclose()


async def test_address_may_hold_a_query_and_blanks_around_it(server: Server) -> None:
    server.chunks = [piece(content="Hello"), piece(finish="stop")]
    engine = OpenAIEngine("m", base_url=f" {server.url}/?api-version=2024-10-21&key=#end ".replace("http", "HTTP"))
    assert (await MixQuantChatModel(engine=engine).ainvoke("hi")).content == "Hello"
    assert server.paths == [
        "/v1/models?api-version=2024-10-21&key=",
        "/v1/chat/completions?api-version=2024-10-21&key=",
    ]
    assert await engine.count_tokens([{"role": "user", "content": "one two"}]) == 2
    assert engine.info.base_url == server.url
    await engine.aclose()


async def test_list_of_models_may_be_forbidden(server: Server, engine: OpenAIEngine) -> None:
    server.models_status = 403
    await engine.start()
    assert engine.info.max_model_len is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTP_PROXY", "ftp://me:pass-word@a", "proxy or certificate of the environment"),
        ("SSL_CERT_FILE", "/nonexistent/file.pem", "proxy or certificate of the environment"),
        ("HTTP_PROXY", "http://me:pass-word@127.0.0.1:9", "by the proxy http://127.0.0.1:9: name its host in NO_PROXY"),
    ],
)
async def test_environment_that_stands_in_the_way_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    _certificates.cache_clear()
    engine = OpenAIEngine("m", base_url=server.url, max_retries=0)
    with pytest.raises(MixQuantError, match=words) as caught:
        await MixQuantChatModel(engine=engine).ainvoke("hi")
    await engine.aclose()
    _certificates.cache_clear()
    assert "pass-word" not in str(caught.value)
    assert "please report" not in str(caught.value)


async def test_names_that_the_environment_has_for_openai_go_nowhere_else(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")
    server.chunks = [piece(content="Hello"), piece(finish="stop")]
    engine = OpenAIEngine("m", base_url=server.url)
    await MixQuantChatModel(engine=engine).ainvoke("hi")
    await engine.aclose()
    assert "of-mine" not in str(server.headers[-1])
