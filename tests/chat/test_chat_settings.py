"""Settings of the model and of one call: what reaches the engine and what is refused."""

import asyncio
import copy
import pickle
import threading
from typing import Any

import pytest
from chat_doubles import model_of, request_of
from langchain_core.caches import InMemoryCache

from mixquant_agents import EngineConfig, MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.openai import OpenAIEngine
from mixquant_agents.errors import (
    ConfigError,
    EngineClosedError,
    GrammarError,
    InvalidSamplingError,
    RequestError,
    UnknownPolicyError,
)


async def test_settings_reach_the_engine_and_calls_override_them() -> None:
    model = model_of("x", temperature=0.5, stop=["A"], seed=3, max_tokens=9, top_logprobs=2, cache_salt="mine")
    await model.ainvoke("hi", temperature=0, stop=["B"], priority=4, chat_template_kwargs={"enable_thinking": False})
    request = request_of(model)
    sampling = request.sampling
    assert (sampling.temperature, sampling.stop, sampling.seed, sampling.max_tokens) == (0, ("B",), 3, 9)
    assert (sampling.logprobs, request.cache_salt, request.priority) == (2, "mine", 4)
    assert request.chat_template_kwargs == {"enable_thinking": False}
    await model.ainvoke("hi")
    assert request_of(model).sampling.stop == ("A",)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"temprature": 1}, RequestError, "'temprature'"),
        ({"model": "gpt"}, RequestError, "'gpt'"),
        ({"stop": [""]}, InvalidSamplingError, "stop"),
        ({"top_logprobs": 2, "logprobs": False}, InvalidSamplingError, "logprobs=True"),
        ({"response_format": {"type": "xml"}}, GrammarError, "xml"),
    ],
)
async def test_wrong_call_settings_are_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        await model_of("x").ainvoke("hi", **settings)
    with pytest.raises(error, match=words):
        await asyncio.to_thread(model_of("x").invoke, "hi", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temprature": 1}, "no setting 'temprature'"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"model": ""}, "model"),
        ({"engine": object()}, "is no Engine"),
        ({"engine": ScriptedEngine(), "max_model_len": 4096}, "leave them out"),
        ({"engine": ScriptedEngine(), "policy": "exact"}, "leave them out"),
        ({"engine": ScriptedEngine(), "model": "other"}, "leave model out"),
        ({"engine_config": EngineConfig(model="m"), "max_model_len": 4096}, "inside it"),
        ({"engine_config": EngineConfig(model="m"), "model": "n"}, "leave one out"),
        ({"engine_config": EngineConfig(model="m"), "policy": "exact"}, "leave one out"),
        ({"max_model_len": 3}, "max_model_len"),
        ({"engine_settings": None, "max_model_len": 4096}, "engine_settings = None"),
        ({"engine_settings": {"max_model_len": 512}, "max_model_len": 4096}, "holds max_model_len; say it once"),
        ({"engine_settings": {"model": "m", "policy": "exact"}}, "holds model, policy"),
    ],
)
def test_wrong_model_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixQuantChatModel(**settings)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UnknownPolicyError, match="mixquant-nvfp4"):
        MixQuantChatModel(policy="mixquant-nvfp5")


def test_engine_settings_make_the_engines_config() -> None:
    model = MixQuantChatModel(model="m", policy="exact", max_model_len=4096, dtype="float32", seed=7)
    assert model._config() == EngineConfig(model="m", policy="exact", max_model_len=4096, dtype="float32")
    assert model.profile["max_input_tokens"] == 4096
    whole = MixQuantChatModel(engine_config=EngineConfig(model="n", policy="mixquant-fp8"))
    assert (whole.model, whole.policy_name) == ("n", "mixquant-fp8")


async def test_copies_and_dumps_are_sane() -> None:
    model = model_of("x", temperature=0.5)
    assert model.model_dump()["temperature"] == 0.5
    assert "engine" not in model.model_dump()
    assert model.asdict()["_type"] == "mixquant"
    assert "temperature" in model._get_llm_string()
    assert copy.deepcopy(model).engine is model.engine
    assert (await pickle.loads(pickle.dumps(model)).ainvoke("hi")).content == "x"  # noqa: S301 - our own bytes
    lazy = pickle.loads(pickle.dumps(MixQuantChatModel(model="m", max_model_len=512)))  # noqa: S301
    assert lazy._config().max_model_len == 512


def test_traces_name_the_model() -> None:
    params = model_of("x", temperature=0.5, stop="END", max_tokens=3)._get_ls_params()
    wanted = {"ls_provider": "mixquant", "ls_model_name": "scripted", "ls_temperature": 0.5, "ls_max_tokens": 3}
    assert wanted.items() <= params.items()
    assert params["ls_stop"] == ["END"]


async def test_context_managers_close_what_the_model_made() -> None:
    async with model_of("x") as model:
        assert (await model.ainvoke("hi")).content == "x"
    assert (await model.ainvoke("hi")).content == "x", "a given engine is not the model's to close"


async def test_the_shared_engine_is_made_once_with_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedEngine] = []

    def shared_engine(config: EngineConfig) -> ScriptedEngine:
        made.append(ScriptedEngine(["x"], cycle=True, model=config.model))
        return made[-1]

    monkeypatch.setattr("mixquant_agents.chat.model.shared_engine", shared_engine)
    model = MixQuantChatModel(max_model_len=512)
    assert made == []
    answers = await asyncio.gather(*(model.ainvoke("hi") for _ in range(4)), asyncio.to_thread(model.invoke, "hi"))
    assert {answer.response_metadata["model_name"] for answer in answers} == {"embedded"}
    assert len(made) == 1
    await model.aclose()
    await model.aclose()
    with pytest.raises(EngineClosedError):
        await made[0].stream(made[0].requests[0]).asend(None)
    assert (await model.ainvoke("hi")).content == "x", "the next turn starts anew"
    assert len(made) == 2


async def test_what_a_copy_closes_the_original_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedEngine] = []

    def shared_engine(config: EngineConfig) -> ScriptedEngine:
        made.append(ScriptedEngine(["x"], cycle=True))
        return made[-1]

    monkeypatch.setattr("mixquant_agents.chat.model.shared_engine", shared_engine)
    records: list[Any] = []
    model = MixQuantChatModel(max_model_len=512, recorders=[records.append])
    await model.ainvoke("hi")
    twin = copy.deepcopy(model).model_copy(update={"temperature": 0.5})
    await twin.ainvoke("hi")
    assert len(made) == 1
    await twin.aclose()
    await model.ainvoke("hi")
    await model.aclose()
    assert (len(made), len(records)) == (2, 3)
    await model.ainvoke("hi")
    other = model.model_copy(update={"policy": "exact", "recorders": ()})
    await other.ainvoke("hi")
    assert len(made) == 4, "an engine of another policy is another engine"
    await model.aclose()
    assert len(records) == 4


async def test_closing_releases_the_engine_though_a_recorder_keeps_it_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(["x"], cycle=True)
    monkeypatch.setattr("mixquant_agents.chat.model.shared_engine", lambda _: engine)
    slow = threading.Event()
    model = MixQuantChatModel(recorders=[lambda _: slow.wait(5)])
    await model.ainvoke("hi")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.aclose(), 0.05)
    slow.set()
    with pytest.raises(EngineClosedError):
        await engine.stream(engine.requests[0]).asend(None)


def test_a_cache_of_answers_tells_policies_and_servers_apart() -> None:
    cache = InMemoryCache()
    said = [
        MixQuantChatModel(engine=ScriptedEngine([policy], policy=policy), cache=cache).invoke("hi").content
        for policy in ("exact", "uniform-nvfp4")
    ]
    assert said == ["exact", "uniform-nvfp4"]
    engines = [OpenAIEngine("m", base_url=f"http://127.0.0.1:{port}/v1") for port in (1, 2)]
    assert len({MixQuantChatModel(engine=engine)._get_llm_string() for engine in engines}) == 2
