"""Settings of the model and of one call: what reaches the engine and what is refused."""

import asyncio
import copy
import json
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
from chat_doubles import model_of, request_of
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult

from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, ScriptedEngine, VllmEngine
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
async def test_call_settings_that_are_wrong_are_refused(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
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
        ({"engine": ScriptedEngine(), "max_model_len": 4096}, "leave out max_model_len"),
        ({"engine": ScriptedEngine(), "policy": "exact"}, "leave out policy"),
        ({"engine": ScriptedEngine(), "model": "other"}, "leave model out"),
        ({"engine_config": EngineConfig(model="m"), "max_model_len": 4096}, "inside it"),
        ({"engine_config": EngineConfig(model="m"), "model": "n"}, "leave one out"),
        ({"engine_config": EngineConfig(model="m"), "policy": "exact"}, "leave one out"),
        ({"max_model_len": 3}, "max_model_len"),
        ({"engine_settings": None, "max_model_len": 4096}, "engine_settings = None"),
        (
            {"engine_settings": {"max_model_len": 512}, "max_model_len": 4096},
            "holds max_model_len; give each setting once",
        ),
        ({"engine_settings": {"model": "m", "policy": "exact"}}, "holds model, policy"),
    ],
)
def test_model_settings_that_are_wrong_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixQuantChatModel(**settings)


def test_policy_that_is_unknown_is_named() -> None:
    with pytest.raises(UnknownPolicyError, match="mixquant-nvfp4"):
        MixQuantChatModel(policy="mixquant-nvfp5")


def test_engine_settings_make_the_engines_config() -> None:
    model = MixQuantChatModel(model="m", policy="exact", max_model_len=4096, dtype="float32", seed=7)
    config = EngineConfig(model="m", policy="exact", max_model_len=4096, dtype="float32")
    assert model._identifying_params["engine_config"] == config.fingerprint
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
    assert lazy == MixQuantChatModel(model="m", max_model_len=512)


def test_traces_name_the_model() -> None:
    params = model_of("x", temperature=0.5, stop="END", max_tokens=3)._get_ls_params()
    wanted = {"ls_provider": "mixquant", "ls_model_name": "scripted", "ls_temperature": 0.5, "ls_max_tokens": 3}
    assert wanted.items() <= params.items()
    assert params["ls_stop"] == ["END"]


async def test_context_managers_close_what_the_model_made() -> None:
    async with model_of("x") as model:
        assert (await model.ainvoke("hi")).content == "x"
    assert (await model.ainvoke("hi")).content == "x", "a given engine is not the model's to close"


async def test_shared_engine_is_made_once_with_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedEngine] = []

    def shared_engine(config: EngineConfig) -> ScriptedEngine:
        made.append(ScriptedEngine(["x"], cycle=True, model=config.model))
        return made[-1]

    monkeypatch.setattr(VllmEngine, "shared", shared_engine)
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


async def test_engine_that_a_copy_closed_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ScriptedEngine] = []

    def shared_engine(config: EngineConfig) -> ScriptedEngine:
        made.append(ScriptedEngine(["x"], cycle=True))
        return made[-1]

    monkeypatch.setattr(VllmEngine, "shared", shared_engine)
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
    monkeypatch.setattr(VllmEngine, "shared", lambda _: engine)
    slow = threading.Event()
    model = MixQuantChatModel(recorders=[lambda _: slow.wait(5)])
    await model.ainvoke("hi")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.aclose(), 0.05)
    slow.set()
    with pytest.raises(EngineClosedError):
        await engine.stream(engine.requests[0]).asend(None)


def test_cache_of_answers_tells_policies_and_servers_apart() -> None:
    cache = InMemoryCache()
    said = [
        MixQuantChatModel(engine=ScriptedEngine([policy], policy=policy), cache=cache).invoke("hi").content
        for policy in ("exact", "uniform-nvfp4")
    ]
    assert said == ["exact", "uniform-nvfp4"]
    engines = [OpenAIEngine("m", base_url=f"http://127.0.0.1:{port}/v1") for port in (1, 2)]
    assert len({MixQuantChatModel(engine=engine)._get_llm_string() for engine in engines}) == 2


def test_repr_shows_model_and_policy() -> None:
    text = repr(MixQuantChatModel(temperature=0.5, api_key="secret", metadata={"team": "a"}))
    assert text == "MixQuantChatModel(model='embedded', policy='mixquant', metadata={'team': 'a'}, temperature=0.5)"
    given = MixQuantChatModel(engine=ScriptedEngine())
    assert str(given) == "model='scripted' engine='ScriptedEngine'"


def test_equal_settings_make_equal_models() -> None:
    model, same = (MixQuantChatModel(model="embedded", temperature=0.5) for _ in range(2))
    assert model == same
    assert model != MixQuantChatModel(model="embedded", temperature=0.4)
    engine = ScriptedEngine(["x"])
    used, unused = MixQuantChatModel(engine=engine), MixQuantChatModel(engine=engine)
    used.invoke("hi")
    assert used == unused
    assert used != MixQuantChatModel(engine=ScriptedEngine(["x"]))


def test_llm_output_tells_the_usage() -> None:
    class Older(BaseCallbackHandler):
        outputs: ClassVar[list[Any]] = []

        def on_llm_end(self, response: LLMResult, **_: Any) -> None:
            self.outputs.append(response.llm_output)

    model = MixQuantChatModel(engine=ScriptedEngine(["a b c"], cycle=True))
    answer = model.invoke("hi", {"callbacks": [Older()]})
    usage = answer.usage_metadata
    told = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    assert Older.outputs == [{"model_name": "scripted", "token_usage": told}]
    assert answer.response_metadata["token_usage"] == told
    both = model.generate([[HumanMessage("hi")], [HumanMessage("hi")]])
    assert both.llm_output["token_usage"] == {name: 2 * count for name, count in told.items()}


def test_settings_are_written_and_read_in_langchain_s_form() -> None:
    policy = PrecisionPolicy(reproducible=True)
    model = MixQuantChatModel(temperature=0.5, policy=policy, max_model_len=4096, api_key="secret")
    text = dumps(model)
    assert "secret" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LangChain calls its loading a beta
        again = loads(text, valid_namespaces=["mixquant_agents"], allowed_objects=[MixQuantChatModel])
    assert again == model.model_copy(update={"api_key": None})
    assert json.loads(dumps(MixQuantChatModel(engine=ScriptedEngine())))["type"] == "not_implemented"


def test_profile_knows_the_window_before_the_engine_starts(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 2048}}))
    models = [
        (MixQuantChatModel(max_model_len=4096), 4096),
        (MixQuantChatModel(), 8192),
        (MixQuantChatModel(engine_config=EngineConfig(model="embedded", max_model_len=99)), 99),
        (MixQuantChatModel(model=str(folder)), 2048),
        (MixQuantChatModel(engine=ScriptedEngine(max_model_len=512)), 512),
        (MixQuantChatModel(engine=VllmEngine(EngineConfig(model="embedded"))), 8192),
    ]
    for model, window in models:
        assert model.profile["max_input_tokens"] == window
        assert model.bind(temperature=0).bound.profile["max_input_tokens"] == window


def test_copy_with_another_engine_has_its_profile() -> None:
    model = MixQuantChatModel(engine=ScriptedEngine(max_model_len=512))
    other = model.model_copy(update={"engine": ScriptedEngine(max_model_len=1024)})
    assert (model.profile["max_input_tokens"], other.profile["max_input_tokens"]) == (512, 1024)
    named = model.model_copy(update={"engine": ScriptedEngine(model="other")})
    assert (named.model, model.model) == ("other", "scripted")
    local = model.model_copy(update={"engine": None, "max_tokens": 3})
    assert (local.model, local.profile["max_input_tokens"]) == ("embedded", 8192)
    with pytest.raises(ConfigError, match="base_url"):
        model.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    typed = MixQuantChatModel(engine=ScriptedEngine(), profile={"max_input_tokens": 7})
    assert typed.model_copy(update={"engine": ScriptedEngine()}).profile == {"max_input_tokens": 7}


def test_engine_config_tells_what_may_have_been_meant() -> None:
    with pytest.raises(
        ConfigError, match=r"EngineConfig has no setting 'max_model_length' \(did you mean 'max_model_len'"
    ):
        EngineConfig(model="m", max_model_length=3)
