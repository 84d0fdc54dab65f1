"""Weights loaded anew into a running model (``reload_weights``), as vLLM does it: twins follow, where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.model_loader.reload import layerwise

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.formats import nvfp4 as nvfp4_format
from mixquant_agents.quant.formats import registry
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import EXACT, QUANTIZED
from mixquant_agents.quant.twins.nvfp4 import Nvfp4Twin
from mixquant_agents.quant.vllm.linear import MixQuantLinearMethod
from mixquant_agents.quant.vllm.method import MixQuantConfig

N, K = 32, 64


class Model(torch.nn.Module):
    """One routed Linear and the loading that vLLM's models have."""

    def __init__(self, config: MixQuantConfig) -> None:
        super().__init__()
        self.up_proj = ReplicatedLinear(K, N, False, quant_config=config, prefix="model.layers.0.mlp.up_proj")

    def load(self, weight: torch.Tensor) -> None:
        param = self.up_proj.weight
        param.weight_loader(param, weight)

    def reload(self, weight: torch.Tensor) -> None:
        layerwise.initialize_layerwise_reload(self)
        self.load(weight)
        layerwise.finalize_layerwise_reload(self, SimpleNamespace(dtype=torch.float32))


PLACES = {
    "fp8": DeviceInfo("cuda", "NVIDIA H100", (9, 0)),
    "nested": DeviceInfo("cuda", "NVIDIA H100", (9, 0)),
    "nvfp4": DeviceInfo("cuda", "NVIDIA B200", (10, 0)),
    "emulated": DeviceInfo("cpu", "cpu"),
}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[PrecisionPolicy, DeviceInfo], Model]:
    """Makes a model without an engine."""
    for module in (linear, parameter):  # without process groups
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: 0)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 1)
    kernel = EmulationNvFp4LinearKernel(NvFp4LinearLayerConfig())  # a CPU has no other
    monkeypatch.setattr(nvfp4_format.Nvfp4Format, "native", lambda self, name, recipe: Nvfp4Twin(name, kernel))
    registry._twin_of.cache_clear()

    def made(policy: PrecisionPolicy, place: DeviceInfo) -> Model:
        config = MixQuantConfig(policy)
        config.runtime = Runtime(policy, place, switchable=True)
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
            model = Model(config)
        layerwise.record_metadata_for_reloading(model)
        return model

    return made


@pytest.fixture(params=list(PLACES))
def model(request: pytest.FixtureRequest, make: Callable[[PrecisionPolicy, DeviceInfo], Model]) -> Model:
    policy = PrecisionPolicy.of("mixquant-nvfp4-plain" if request.param == "nvfp4" else "mixquant-fp8")
    if request.param == "nested":
        policy = policy.model_copy(update={"storage": "nested"})
    return make(policy, PLACES[request.param])


def tensors_of(method: MixQuantLinearMethod) -> list[torch.Tensor]:
    """The exact weight, and all that the twin keeps of it."""
    return [method.operand, *method.twin.tensors(method.state).values()]


def test_twins_follow_their_weights_where_they_lie(model: Model) -> None:
    torch.manual_seed(0)
    layer, method = model.up_proj, model.up_proj.quant_method
    runtime: Any = method._runtime
    x, twin = torch.randn(5, K), method.twin
    first, *others = (torch.randn(N, K).bfloat16().float() for _ in range(4))
    others[-1] *= 128  # another global scale
    model.load(first)
    method.process_weights_after_loading(layer)
    assert runtime.layers == [method]
    places = [tensor.data_ptr() for tensor in tensors_of(method)]
    for weight in others:
        model.reload(weight)
        now = tensors_of(method)
        assert [tensor.data_ptr() for tensor in now] == places, "a captured graph would read the old ones"
        assert torch.equal(method.weight.float(), weight)
        if not twin.holds_exact:
            assert torch.equal(now[0], weight)
            assert torch.equal(layer.weight, weight)
        with steps.forced(EXACT):
            if twin.captured:
                assert torch.equal(method.apply(layer, x), torch.nn.functional.linear(x, weight))
        with steps.forced(QUANTIZED):
            torch.testing.assert_close(method.apply(layer, x), twin.product(PlainRows(x), twin.build(weight)))


def test_layers_own_kernel_that_knows_no_twin_is_turned_off(model: Model) -> None:
    layer = model.up_proj
    layer._use_min_latency_gemm = True  # as DeepSeek's first projection of q and kv sets it on a Hopper
    model.load(torch.randn(N, K).bfloat16().float())
    layer.quant_method.process_weights_after_loading(layer)
    assert layer._use_min_latency_gemm is False


def test_layer_that_holds_both_weights_never_has_them_beside_each_other(
    make: Callable[[PrecisionPolicy, DeviceInfo], Model],
) -> None:
    """As vLLM's online quantization: nothing is there before the checkpoint's tensor, and that does not stay."""
    torch.manual_seed(0)
    policy = PrecisionPolicy(prefill_format="fp8", storage="nested")
    model = make(policy, PLACES["nested"])
    layer, method = model.up_proj, model.up_proj.quant_method
    assert layer.weight.is_meta
    assert method.uses_meta_device
    weight = torch.randn(N, K).bfloat16().float()
    model.load(weight)
    held = {tensor.data_ptr(): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    assert layer.weight.dtype is torch.float8_e4m3fn
    assert {tensor.dtype for tensor in held.values()}.isdisjoint({torch.bfloat16})
    assert sum(t.numel() * t.element_size() for t in held.values()) < 2 * weight.numel() * 2
    before = layer.weight.data_ptr()
    method.process_weights_after_loading(layer)  # vLLM comes again when all layers are loaded
    assert layer.weight.data_ptr() == before
    assert torch.equal(method.weight.float(), weight)
    assert method.twin_bytes + layer.weight.numel() == sum(t.numel() * t.element_size() for t in held.values())


@pytest.mark.parametrize("place", ["nvfp4", "emulated"])
def test_checkpoints_twins_stay_with_the_weights_they_belong_to(
    tmp_path: Path, make: Callable[[PrecisionPolicy, DeviceInfo], Model], place: str
) -> None:
    torch.manual_seed(0)
    weight, other = torch.randn(N, K), torch.randn(N, K)
    made = nvfp4.quantize(weight, nvfp4.tensor_global_scale(weight))
    name = "model.layers.0.mlp.up_proj"
    content = {"packed": made.packed, "scale": made.scales, "global_scale": made.global_scale.reshape(1)}
    save_file({f"{name}.weight_{end}": tensor for end, tensor in content.items()}, tmp_path / "model.safetensors")
    policy = PrecisionPolicy(prefill_format="nvfp4", prefill_checkpoint=str(tmp_path))
    model = make(policy, PLACES[place])
    layer, method = model.up_proj, model.up_proj.quant_method
    model.load(weight)
    method.process_weights_after_loading(layer)
    before = [tensor.clone() for tensor in tensors_of(method)]
    model.reload(weight)
    for old, new in zip(before, tensors_of(method), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(ConfigError, match=f"{name}.*prefill_checkpoint=.*start another engine"):
        model.reload(other)


@pytest.mark.parametrize("place", ["fp8", "nvfp4", "nested"])
def test_captured_layers_are_one_operation_for_the_compiler(
    make: Callable[[PrecisionPolicy, DeviceInfo], Model], place: str
) -> None:
    """As vLLM compiles them: without a break, whatever the twin keeps, and the same in each mode."""
    torch.manual_seed(0)
    policy = PrecisionPolicy(prefill_format="fp8" if place == "nested" else place)
    if place == "nested":
        policy = policy.model_copy(update={"storage": "nested"})
    model = make(policy, PLACES[place])
    layer, method = model.up_proj, model.up_proj.quant_method
    model.load(torch.randn(N, K).bfloat16().float())
    method.process_weights_after_loading(layer)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = torch.randn(1, 5, K)
    compiled = torch.compile(lambda rows: method.apply(layer, rows), backend=keep, fullgraph=True)
    for step in (EXACT, QUANTIZED):
        with steps.forced(step):
            assert torch.equal(compiled(x), method.apply(layer, x))
    (graph,) = graphs
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert calls == ["mixquant.gpu_linear"]
