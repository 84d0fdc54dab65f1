"""A layer that vLLM fuses, with parts in different formats, as vLLM builds and runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.linear import MergedColumnParallelLinear

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.formats import nvfp4 as nvfp4_format
from mixquant_agents.quant.formats import registry
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import EXACT, QUANTIZED
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin
from mixquant_agents.quant.vllm.method import MixQuantConfig

N, K = 32, 64
FUSED = {"gate_up_proj": ["gate_proj", "up_proj"]}
UP_FP8 = PrecisionPolicy(prefill_format="nvfp4", formats={"up_proj": "fp8"})
PLACES = {"native": DeviceInfo("cuda", "NVIDIA B200", (10, 0)), "emulated": DeviceInfo("cpu", "cpu")}


@pytest.fixture(params=list(PLACES))
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Runtime]]:
    """gate_up_proj without an engine, its weight loaded, and the worker's runtime."""
    for module in (linear, parameter):  # without process groups
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: 0)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 1)
    kernel = EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig())  # a CPU has no other
    monkeypatch.setattr(nvfp4_format.Nvfp4Format, "native", lambda self, name, recipe: Nvfp4Twin(name, kernel))
    registry._twin_of.cache_clear()
    config = MixQuantConfig(UP_FP8)
    config.runtime = runtime = Runtime(UP_FP8, PLACES[request.param], switchable=True, fused=FUSED)
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        layer = MergedColumnParallelLinear(
            K, [N, N], False, quant_config=config, prefix="model.layers.0.mlp.gate_up_proj"
        )
    torch.manual_seed(0)
    layer.weight.data.copy_(torch.randn(2 * N, K))
    layer.quant_method.process_weights_after_loading(layer)
    yield layer, runtime
    registry._twin_of.cache_clear()


def test_parts_run_in_their_formats_and_status_names_them(built: tuple[Any, Runtime]) -> None:
    layer, runtime = built
    x, weight = torch.randn(5, K), layer.weight.data
    kind = "native" if runtime.captured else "emulated"
    assert runtime.status()["layer_formats"] == {f"nvfp4-{kind} + fp8-{kind}": 1}
    with steps.forced(QUANTIZED):
        gate, up = layer.quant_method.apply(layer, x).split([N, N], dim=1)
    for number, (own, columns) in enumerate(((weight[:N], gate), (weight[N:], up))):
        error = float((columns - x @ own.T).norm() / (x @ own.T).norm())
        assert (0.06 < error < 0.25) if number == 0 else (0.005 < error < 0.06)
    with steps.forced(EXACT):
        torch.testing.assert_close(layer.quant_method.apply(layer, x), x @ weight.T)


def test_other_formats_can_follow_in_an_eager_engine(built: tuple[Any, Runtime]) -> None:
    layer, runtime = built
    method = layer.quant_method
    runtime.set_policy(PrecisionPolicy(prefill_format="nvfp4", formats={"gate_proj": "exact"}))
    x = torch.randn(5, K)
    gate, up = method.twin.product(PlainRows(x), method.state).split([N, N], dim=1)
    torch.testing.assert_close(gate, x @ layer.weight.data[:N].T)
    assert not torch.allclose(up, x @ layer.weight.data[N:].T, rtol=1e-2)
