"""Weights loaded anew into a running model (``reload_weights``), as vLLM does it: twins follow, where they lie."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.model_loader.reload import layerwise

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.quant import twin as twins
from mixquant_agents.quant.config import MixQuantConfig
from mixquant_agents.quant.gpu import steps
from mixquant_agents.quant.gpu.nvfp4 import Nvfp4Twin
from mixquant_agents.quant.gpu.steps import EXACT, QUANTIZED
from mixquant_agents.quant.gpu.twin import register
from mixquant_agents.quant.resolve import DeviceInfo
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twin import get_twin

N, K = 32, 64


class Model(torch.nn.Module):
    """One routed Linear and the loading that vLLM's models have."""

    def __init__(self, config: MixQuantConfig) -> None:
        super().__init__()
        self.up_proj = ReplicatedLinear(K, N, False, quant_config=config, prefix="model.layers.0.mlp.up_proj")

    def load(self, weight: torch.Tensor) -> None:
        param = self.up_proj.weight
        param.weight_loader(param, weight)


PLACES = {
    "fp8": DeviceInfo("cuda", "NVIDIA H100", (9, 0)),
    "nvfp4": DeviceInfo("cuda", "NVIDIA B200", (10, 0)),
    "emulated": DeviceInfo("cpu", "cpu"),
}


@pytest.fixture(params=list(PLACES))
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    for module in (linear, parameter):  # without process groups
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: 0)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 1)
    register()
    kernel = EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig())
    monkeypatch.setitem(twins._TWINS, "nvfp4-native", Nvfp4Twin(kernel))  # a CPU has no other
    config = MixQuantConfig(PrecisionPolicy.of("mixquant-nvfp4" if request.param == "nvfp4" else "mixquant-fp8"))
    config.runtime = Runtime(config.policy, PLACES[request.param], switchable=True)
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        made = Model(config)
    layerwise.record_metadata_for_reloading(made)
    return made


def test_twins_follow_their_weights_where_they_lie(model: Model) -> None:
    torch.manual_seed(0)
    layer, method = model.up_proj, model.up_proj.quant_method
    runtime: Any = method._runtime
    x, twin = torch.randn(5, K), get_twin(method.key)
    first, *others = (torch.randn(N, K) for _ in range(4))
    others[-1] *= 100  # another global scale
    model.load(first)
    method.process_weights_after_loading(layer)
    places = [tensor.data_ptr() for tensor in next(iter(runtime.native_layers()))]
    for weight in others:
        layerwise.initialize_layerwise_reload(model)
        model.load(weight)
        layerwise.finalize_layerwise_reload(model, SimpleNamespace(dtype=torch.float32))
        now = next(iter(runtime.native_layers()))
        assert [tensor.data_ptr() for tensor in now] == places, "a captured graph would read the old ones"
        assert torch.equal(now[0], weight)
        assert torch.equal(layer.weight, weight)
        with steps.forced(EXACT):
            if method._native:
                assert torch.equal(method.apply(layer, x), torch.nn.functional.linear(x, weight))
        with steps.forced(QUANTIZED):
            torch.testing.assert_close(method.apply(layer, x), twin.apply(x, twin.build(weight)))
