"""When a model's layers are all made, and what is known of it then."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import LoadConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from mixquant_agents.config import POLICY_PRESETS
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.vllm.linear import MixQuantLinearMethod
from mixquant_agents.quant.vllm.loading import hook_loading
from mixquant_agents.quant.vllm.method import MixQuantConfig


def config_of(policy: str) -> MixQuantConfig:
    config = MixQuantConfig(POLICY_PRESETS[policy])
    config.runtime = Runtime(config.policy, DeviceInfo("cpu", "cpu"), switchable=False)
    return config


def method_of(config: MixQuantConfig, prefix: str) -> Any:
    return config.get_quant_method(LinearBase.__new__(LinearBase), prefix)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models whose weights vLLM's loader has read."""
    models: list[Any] = []
    monkeypatch.setattr(DefaultModelLoader, "load_weights", lambda self, model, model_config: models.append(model))
    hook_loading(SimpleNamespace(load_config=LoadConfig()))
    return models


def load(config: MixQuantConfig) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].quant_config = config  # as vLLM's layers have it
    DefaultModelLoader(LoadConfig()).load_weights(model, None)


def test_layers_made_after_the_models_are_a_drafters_and_run_exact(read: list[Any]) -> None:
    config = config_of("mixquant-fp8")
    assert isinstance(method_of(config, "model.layers.0.mlp.down_proj"), MixQuantLinearMethod)
    load(config)
    assert len(read) == 1
    assert type(method_of(config, "model.layers.61.mtp_block.mlp.down_proj")) is UnquantizedLinearMethod
    load(config)  # weights loaded anew
    assert len(read) == 2


def test_model_of_unknown_layer_names_is_refused_before_its_weights_are_read(read: list[Any]) -> None:
    config = config_of("mixquant-fp8")
    assert type(method_of(config, "model.tower_7.dense")) is UnquantizedLinearMethod
    with pytest.raises(ConfigError, match=r"'mixquant-fp8' would quantize nothing.*'model\.tower_7\.dense'.*'exact'"):
        load(config)
    assert not read
    exact = config_of("exact")
    method_of(exact, "model.tower_7.dense")
    load(exact)
    assert len(read) == 1
