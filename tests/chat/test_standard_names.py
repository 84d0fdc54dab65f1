"""LangChain's standard names for settings: taken, or refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
from chat_doubles import add, model_of, request_of

from mixquant_agents import MixQuantChatModel, OpenAIEngine, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ConfigError, EngineDeadError, RequestError


@pytest.mark.parametrize("where", ["model", "call"])
def test_standard_names_reach_the_engine(where: str) -> None:
    given: dict[str, Any] = {
        "max_completion_tokens": 7,
        "request_timeout": 9.5,
        "stop_sequences": ["END"],
        "reasoning_effort": "low",
        "user": "ann",
        "n": 1,
        "stream_usage": True,
        "model_name": "scripted",
    }
    model = model_of("x", **given) if where == "model" else model_of("x")
    model.invoke("hi", **({} if where == "model" else given))
    request = request_of(model)
    assert (request.sampling.max_tokens, request.sampling.stop) == (7, ("END",))
    assert (request.reasoning_effort, request.user) == ("low", "ann")
    if where == "model":
        assert (model.timeout, model.model_name, model.model) == (9.5, "scripted", "scripted")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 2}, "n=2 is refused: a call has one answer; use batch"),
        ({"stream_usage": False}, "stream_usage=False is refused"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "are the same setting; give one"),
        ({"logit_bias": {}}, r"'logit_bias' \(give it as sampling_extra"),
        ({"model_kwargs": {}}, r"'model_kwargs' \(give each setting by its own name"),
        ({"max_token": 3}, r"'max_token' \(did you mean 'max_tokens'\?\).*it has .*temperature"),
    ],
)
def test_what_means_nothing_is_refused_with_a_hint(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_of("x", **given)
    with pytest.raises(RequestError, match=words):
        model_of("x").invoke("hi", **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"polcy": "exact"}, r"'polcy' \(did you mean 'policy'\?\); it has api_key, .*max_model_len.*policy"),
        ({"max_model_length": 1}, r"did you mean 'max_model_len'\?"),
        ({"http_client": 1}, r"OpenAIEngine makes its own client"),
        ({"vllm_args": {"blok_size": 16}}, r"vllm_args\['blok_size'\].*did you mean 'block_size'"),
        ({"vllm_args": {"dtype": "float16"}}, r"use EngineConfig.dtype"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "base_url= needs model="),
        (
            {"model": "m", "base_url": "http://127.0.0.1:1/v1", "max_model_len": 99},
            "max_model_len cannot be set here",
        ),
        ({"model": "m", "base_url": "nonsense"}, "base_url"),
        ({"engine": ScriptedEngine(), "base_url": "http://127.0.0.1:1/v1"}, "leave one of them out"),
        ({"engine": OpenAIEngine("m"), "api_key": "k"}, r"give it to OpenAIEngine\(api_key="),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_constructor_refuses_with_the_remedy(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixQuantChatModel(**given)


def test_vllm_args_that_vllm_knows_are_taken() -> None:
    assert MixQuantChatModel(vllm_args={"block_size": 32}).engine_settings == {"vllm_args": {"block_size": 32}}


def test_server_may_serve_the_embedded_model_by_its_name() -> None:
    """As ``mixquant serve`` does."""
    model = MixQuantChatModel(model="embedded", policy="mixquant", base_url="http://127.0.0.1:1/v1")
    assert model.model_copy(update={"temperature": 0.0}).model_name == "embedded"


def test_base_url_makes_a_remote_engine() -> None:
    model = MixQuantChatModel(model_name="m", base_url="http://127.0.0.1:1/v1", api_key="k", max_retries=0)
    engine = model._resolve_engine()
    assert isinstance(engine, OpenAIEngine)
    assert (engine.model, engine.base_url) == ("m", "http://127.0.0.1:1/v1")
    assert "api_key" not in repr(model)
    assert "'k'" not in repr(model)
    assert model._resolve_engine() is engine
    other = MixQuantChatModel(model="m", base_url="http://127.0.0.1:2/v1", api_key="k")
    assert other._get_llm_string() != model._get_llm_string()


def test_turn_that_failed_before_its_first_token_is_run_again() -> None:
    records: list[Any] = []
    engine = ScriptedEngine([EngineDeadError("died"), EngineDeadError("died"), "Done."])
    model = MixQuantChatModel(engine=engine, max_retries=2, recorders=[records.append]).bind_tools([add])
    assert model.invoke("hi").content == "Done."
    model.bound.close()
    assert [record.error for record in records] == ["EngineDeadError", "EngineDeadError", None]
    assert len({request.request_id for request in engine.requests}) == 3


@pytest.mark.parametrize(
    ("error", "retries", "asked"),
    [(EngineDeadError("x"), 1, 2), (RequestError("x"), 2, 1), (EngineDeadError("x"), None, 1)],
)
def test_only_what_may_pass_is_tried_again(error: Exception, retries: int | None, asked: int) -> None:
    engine = ScriptedEngine([error], cycle=True)
    with pytest.raises(type(error)):
        MixQuantChatModel(engine=engine, max_retries=retries).invoke("hi")
    assert len(engine.requests) == asked


def test_answer_that_has_begun_is_not_begun_again() -> None:
    engine = ScriptedEngine([ScriptedTurn(text=["a", "b"], fail_after=1)], cycle=True)
    with pytest.raises(EngineDeadError):
        MixQuantChatModel(engine=engine, max_retries=3).invoke("hi")
    assert len(engine.requests) == 1
