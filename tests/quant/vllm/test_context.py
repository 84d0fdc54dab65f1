"""Where operations find a step's plan: in vLLM's own forward context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import forward_context
from vllm.config import VllmConfig
from vllm.config.device import DeviceConfig
from vllm.platforms import current_platform

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import EXACT, QUANTIZED, forced
from mixquant_agents.quant.vllm import runner_hooks
from mixquant_agents.quant.vllm.context import current_step
from mixquant_agents.quant.vllm.patching import wrap


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's own configuration, with the plugin's runtime; its platform hooked as in a worker."""
    original = type(current_platform).set_additional_forward_context
    hooked = SimpleNamespace(set_additional_forward_context=original)
    wrap(hooked, "set_additional_forward_context", runner_hooks._forward_context)
    monkeypatch.setattr(
        current_platform, "set_additional_forward_context", hooked.set_additional_forward_context, raising=False
    )
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    runtime = Runtime(PrecisionPolicy.of("mixquant-nvfp4-plain"), DeviceInfo("cpu", "cpu"), switchable=True)
    config.quant_config = SimpleNamespace(runtime=runtime)
    return config


def test_step_reaches_the_operations_of_its_forward(config: Any) -> None:
    runtime = config.quant_config.runtime
    with forward_context.set_forward_context(None, config, num_tokens=6):
        assert current_step(6).mode is Mode.QUANTIZED, "warm-up"
    runtime.begin_step()
    step = runtime.plan_step([RequestRows("a", 6, 0, 6)])
    with forward_context.set_forward_context(None, config, num_tokens=8):
        assert current_step(8) is step
        assert current_step(5) is EXACT, "fewer rows than the step has"
        with forced(QUANTIZED):
            assert current_step(5) is QUANTIZED
    with forward_context.set_forward_context(None, config, num_tokens=8):
        assert current_step(8) is EXACT, "a draft model's forward"
    assert current_step(8) is EXACT, "outside of any forward"
