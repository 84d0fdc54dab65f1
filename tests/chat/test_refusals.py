"""Bad input to the public surface: one readable line of ours that names the value, never somebody else's exception."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from chat_doubles import City, add, model_of
from langchain_core.messages import HumanMessage

from mixquant_agents import EngineConfig, MixQuantChatModel, OpenAIEngine, PrecisionPolicy, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import (
    ConfigError,
    GrammarError,
    InvalidMessagesError,
    InvalidSamplingError,
    MixQuantError,
    RequestError,
    UnknownPolicyError,
)
from mixquant_agents.telemetry import StoreRecorder

NAN, HUGE = float("nan"), 2**70


def refused(kind: type[MixQuantError], words: str, ask: Callable[[], Any]) -> None:
    with pytest.raises(kind) as caught:
        ask()
    assert isinstance(caught.value, kind)
    assert type(caught.value).__name__ == kind.__name__
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"temperature": "hot"}, InvalidSamplingError, "temperature = 'hot'"),
        ({"temperature": NAN}, InvalidSamplingError, "temperature = nan"),
        ({"top_p": 0}, InvalidSamplingError, "top_p = 0"),
        ({"top_k": -5}, InvalidSamplingError, "top_k = -5"),
        ({"max_tokens": 0}, InvalidSamplingError, "max_tokens = 0"),
        ({"seed": HUGE}, InvalidSamplingError, "seed"),
        ({"stop": 3}, InvalidSamplingError, "stop = 3"),
        ({"logprobs": "many"}, InvalidSamplingError, "logprobs = 'many'"),
        ({"sampling_extra": [1]}, InvalidSamplingError, "sampling_extra"),
        ({"timeout": 0}, RequestError, "timeout = 0"),
        ({"timeout": NAN}, RequestError, "timeout = nan"),
        ({"cache_salt": 3}, RequestError, "cache_salt = 3"),
        ({"chat_template_kwargs": "x"}, RequestError, "chat_template_kwargs"),
    ],
)
def test_option_is_checked_alike_in_the_model_and_in_a_call(
    settings: dict[str, Any], kind: type[MixQuantError], words: str
) -> None:
    refused(kind, f"call.{words}", lambda: model_of("x").invoke("hi", **settings))
    refused(ConfigError, f"MixQuantChatModel.{words}", lambda: model_of("x", **settings))


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"priority": "x"}, RequestError, "priority = 'x'"),
        ({"parallel_tool_calls": "x"}, RequestError, "parallel_tool_calls = 'x'"),
        ({"trace_context": 3}, RequestError, "trace_context = 3"),
        ({"tools": 3}, RequestError, "tools=3 is no list"),
        ({"tools": "add"}, RequestError, "tools='add' is no list"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, RequestError, "named 3"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, RequestError, "'f' are 3"),
        ({"tool_choice": 3.5}, RequestError, "tool_choice=3.5"),
        ({"tool_choice": {"type": "function", "function": None}}, RequestError, "names no tool"),
        ({"tool_choice": {"type": "function", "function": "f"}}, RequestError, "'f' is not among"),
        ({"response_format": "json"}, GrammarError, "'json'"),
        ({"response_format": {"type": "json_object", "schema": 3}}, GrammarError, "3"),
    ],
)
def test_call_is_refused(settings: dict[str, Any], kind: type[MixQuantError], words: str) -> None:
    refused(kind, words, lambda: model_of("x").invoke("hi", **settings))


@pytest.mark.parametrize(
    "said", [None, 3, [3], [("poet", "x")], [{"role": "user"}], [{"content": "x"}], [HumanMessage([{"type": "image"}])]]
)
def test_input_that_is_no_conversation_is_refused(said: Any) -> None:
    refused(InvalidMessagesError, "", lambda: model_of("x").invoke(said))
    refused(InvalidMessagesError, "", lambda: list(model_of("x").stream(said)))


@pytest.mark.parametrize("schema", [3, int, dict, "City", {"x": 1}])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_schema_that_is_none_is_refused(schema: Any, method: Any) -> None:
    refused(GrammarError, "is no schema", lambda: model_of("x").with_structured_output(schema, method=method))


def unknown(place: "Nowhere") -> str:  # type: ignore[name-defined] # noqa: F821 - as where it is imported for types only
    """Go there."""
    return str(place)


def test_tool_that_is_none_is_refused() -> None:
    for tools in ([3], ["add"], [dict], [{}]):
        refused(RequestError, "tool", lambda tools=tools: model_of("x").bind_tools(tools))
    with pytest.raises(RequestError, match="'Nowhere' is not defined"):
        model_of("x").bind_tools([unknown])
    assert model_of("x").bind_tools(one for one in (add, City))  # any iterable will do


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": " "}, "model = ' '"),
        ({"policy": 3}, "policy = 3"),
        ({"engine": ScriptedEngine}, "is a class, make one"),
        ({"engine_config": {}}, "EngineConfig needs 'model'"),
        ({"engine_settings": {"nope": 1}}, "no setting 'nope'"),
        ({"recorders": [3]}, "recorders holds 3"),
        ({"recorders": [StoreRecorder]}, "plain functions"),
        ({"recorders": [asyncio.sleep]}, "plain functions"),
        ({"vllm_args": {1: 2}}, "vllm_args"),
        ({"seed": HUGE}, "seed"),
    ],
)
def test_model_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    refused(ConfigError, words, lambda: MixQuantChatModel(**settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefill_format": "int4"}, "prefill_format = 'int4': Input should be 'auto'"),
        ({"row_threshold": 1.5}, "row_threshold = 1.5: Input should be 'auto' or Input should be a valid integer"),
        ({"ignored_layers": ["re:("]}, "'re:(', which is no pattern"),
        ({"ignored_layers": "lm_head"}, "ignored_layers = 'lm_head'"),
        ({"reproducible": True, "row_threshold": 5}, "reproducible=True needs row_threshold 0, not 5"),
    ],
)
def test_policy_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    refused(ConfigError, words, lambda: PrecisionPolicy(**settings))


@pytest.mark.parametrize("name", ["EXACT", "", None, 3, [], {}])
def test_policy_name_is_refused(name: Any) -> None:
    refused(UnknownPolicyError, f"no policy preset {name!r}", lambda: PrecisionPolicy.of(name))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "model = ''"),
        ({"seed": -1}, "seed = -1"),
        ({"kv_cache_bytes": "1GB"}, "kv_cache_bytes = '1GB'"),
        ({"model": "m", "capture_sizes": [0]}, "capture_sizes.0 = 0"),
    ],
)
def test_engine_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    refused(ConfigError, f"EngineConfig.{words}", lambda: EngineConfig(**{"model": "m", **settings}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "model = ''"),
        ({"base_url": "nope"}, "base_url = 'nope': give an address such as http://"),
        ({"base_url": "http://a b/v1"}, "base_url"),
        ({"base_url": 3}, "base_url = 3"),
        ({"request_timeout": -1}, "request_timeout = -1"),
        ({"request_timeout": NAN}, "request_timeout = nan"),
        ({"max_retries": -1}, "max_retries = -1"),
        ({"headers": 3}, "headers = 3"),
        ({"headers": {"a": 3}}, "headers.a = 3"),
        ({"api_key": 3}, "api_key = 3"),
    ],
)
def test_remote_engine_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    refused(ConfigError, f"OpenAIEngine.{words}", lambda: OpenAIEngine(**{"model": "m", **settings}))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ScriptedEngine(3), "script=3"),
        (lambda: ScriptedEngine(max_model_len=0), "max_model_len=0"),
        (lambda: ScriptedEngine(keep_requests=-1), "keep_requests=-1"),
        (lambda: ScriptedEngine(model=3), "model=3"),
        (lambda: ScriptedTurn(text=[1]), "[1]"),
        (lambda: ScriptedTurn(tool_calls=[{"nam": 1}]), "has no name"),
        (lambda: ScriptedTurn(token_seconds=-1), "negative"),
        (lambda: ScriptedTurn(finish_reason="done"), "'done'"),
    ],
)
def test_script_is_refused(make: Callable[[], Any], words: str) -> None:
    refused(ConfigError, words, make)


@pytest.mark.parametrize("script", [[3], [None], lambda _: 3])
def test_scripted_answer_that_is_none_is_refused(script: Any) -> None:
    refused(
        RequestError, "the script's answer is", lambda: MixQuantChatModel(engine=ScriptedEngine(script)).invoke("hi")
    )
