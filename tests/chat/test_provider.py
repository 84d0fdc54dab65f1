"""``init_chat_model("mixquant:…")``, and what a model says of itself before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain.chat_models import init_chat_model

from mixquant_agents import MixQuantChatModel, OpenAIEngine, ScriptedEngine, register_provider
from mixquant_agents.errors import ConfigError


def test_model_by_name() -> None:
    model = init_chat_model("mixquant:embedded", temperature=0, policy="exact", max_model_len=4096)
    assert isinstance(model, MixQuantChatModel)
    assert (model.model, model.policy_name, model.temperature) == ("embedded", "exact", 0)
    assert init_chat_model("Qwen/Qwen3-8B", model_provider="mixquant").model == "Qwen/Qwen3-8B"


def test_wrong_setting_is_told_by_name() -> None:
    with pytest.raises(ConfigError, match="temprature"):
        init_chat_model("mixquant:embedded", temprature=0)


def test_model_by_name_is_configurable() -> None:
    engine = ScriptedEngine(["one"], cycle=True)
    chosen = init_chat_model(configurable_fields="any", engine=engine)
    config = {"configurable": {"model": "mixquant:scripted"}}
    assert chosen.invoke("hi", config).content == "one"


def test_agents_take_the_name() -> None:
    assert create_agent("mixquant:embedded", []) is not None
    assert create_deep_agent("mixquant:embedded") is not None


def test_registering_again_changes_nothing() -> None:
    from langchain.chat_models.base import _BUILTIN_PROVIDERS

    before = dict(_BUILTIN_PROVIDERS)
    assert register_provider()
    assert before == _BUILTIN_PROVIDERS


def checkpoint(folder: Path, **tokenizer: Any) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4096}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


KEYS = {"max_input_tokens", "max_output_tokens", "tool_calling", "structured_output", "reasoning_output"}


def test_profile_is_filled_before_the_start(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path, chat_template="{{ messages }}")
    profile = MixQuantChatModel(model=plain).profile
    assert profile is not None
    assert profile.keys() >= KEYS
    assert profile["max_input_tokens"] == profile["max_output_tokens"] == 4096
    assert (profile["structured_output"], profile["reasoning_output"]) == (True, False)


@pytest.mark.parametrize("place", ["tokenizer", "file", "named", "setting"])
def test_profile_tells_thinkers_by_their_template(tmp_path: Path, place: str) -> None:
    source = "{{ messages }}<think>"
    template = {"tokenizer": source, "named": [{"name": "default", "template": source}]}.get(place)
    folder = checkpoint(tmp_path, chat_template=template)
    if place in ("file", "setting"):
        (tmp_path / ("chat_template.jinja" if place == "file" else "own.jinja")).write_text(source)
    settings = {"chat_template": str(tmp_path / "own.jinja")} if place == "setting" else {}
    profile = MixQuantChatModel(model=folder, **settings).profile
    assert profile is not None
    assert profile["reasoning_output"] is True
    off = MixQuantChatModel(model=folder, reasoning_parser=None, **settings).profile
    assert off is not None
    assert off["reasoning_output"] is False


def test_embedded_models_profile_is_whole() -> None:
    profile = MixQuantChatModel().profile
    assert profile is not None
    assert profile.keys() >= KEYS
    assert profile["reasoning_output"] is False


def test_server_is_not_asked_for_tools_and_a_schema_at_once() -> None:
    remote = MixQuantChatModel(engine=OpenAIEngine("m", base_url="http://127.0.0.1:9/v1"))
    local = MixQuantChatModel(engine=ScriptedEngine())
    assert [model.profile["structured_output"] for model in (remote, local) if model.profile] == [False, True]


async def test_first_turn_fills_what_was_not_known() -> None:
    model = MixQuantChatModel(engine=ScriptedEngine(["hi"], max_model_len=512))
    model.profile = {"tool_calling": True}
    await model.ainvoke("hi")
    assert model.profile == {
        "tool_calling": True,
        "max_input_tokens": 512,
        "max_output_tokens": 512,
        "reasoning_output": True,
    }


def test_summary_by_a_fraction_counts_by_the_engines_tokenizer() -> None:
    model = init_chat_model("mixquant:scripted", engine=ScriptedEngine(["hi"], max_model_len=512))
    middleware = SummarizationMiddleware(
        model, trigger=("fraction", 0.5), token_counter=lambda messages: model.get_num_tokens_from_messages([*messages])
    )
    assert middleware.trigger == ("fraction", 0.5)
    assert model.get_token_ids("What is 3 + 4?")
    assert len(model.get_token_ids("a b")) == model.get_num_tokens("a b")
