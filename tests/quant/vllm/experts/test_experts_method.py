"""A layer of experts as vLLM builds, loads and reloads it, routed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mixtures import by_loop
from safetensors.torch import save_file
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import fused_moe
from vllm.model_executor.model_loader.reload import layerwise

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertWeights
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.vllm.experts.method import MixQuantExpertsMethod
from mixquant_agents.quant.vllm.experts.nvfp4 import Nvfp4Experts
from mixquant_agents.quant.vllm.experts.refusals import refuse
from mixquant_agents.quant.vllm.method import MixQuantConfig

E, H, INNER, CHOSEN = 4, 32, 16, 2
CPU = DeviceInfo("cpu", "cpu")
PREFIX = "model.layers.{}.mlp.experts"


class Model(torch.nn.Module):  # type: ignore[misc] # torch is untyped here
    """Some layers of experts, and the loading that vLLM's models have."""

    def __init__(self, config: MixQuantConfig, layers: int, **more: Any) -> None:
        super().__init__()
        with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
            self.experts = torch.nn.ModuleList(
                fused_moe.FusedMoEFactory(
                    num_experts=E, top_k=CHOSEN, hidden_size=H, intermediate_size=INNER, params_dtype=torch.float32,
                    quant_config=config, prefix=PREFIX.format(layer), tp_size=1, dp_size=1, pcp_size=1, **more,
                ).routed_experts
                for layer in range(layers)
            )  # fmt: skip
        layerwise.record_metadata_for_reloading(self)

    def load(self, weights: ExpertWeights, layer: int = 0) -> None:
        experts = self.experts[layer]
        for e in range(E):
            gate, up = weights.up[e].chunk(2)
            for name, shard, part in (("w13", "w1", gate), ("w13", "w3", up), ("w2", "w2", weights.down[e])):
                parameter = getattr(experts, f"{name}_weight")
                parameter.weight_loader(parameter, part, f"{name}_weight", shard_id=shard, expert_id=e)

    def finish(self) -> None:
        for experts in self.experts:
            experts.quant_method.process_weights_after_loading(experts)

    def reload(self, weights: ExpertWeights) -> None:
        layerwise.initialize_layerwise_reload(self)
        self.load(weights)
        layerwise.finalize_layerwise_reload(self, SimpleNamespace(dtype=torch.float32))


def model_of(policy: PrecisionPolicy | str, layers: int = 1, **more: Any) -> Model:
    config = MixQuantConfig(PrecisionPolicy.of(policy))
    config.runtime = Runtime(config.policy, CPU, switchable=True)
    return Model(config, layers, **more)


def method_of(model: Model, layer: int = 0) -> MixQuantExpertsMethod:
    method: MixQuantExpertsMethod = model.experts[layer].quant_method
    return method


def random_weights(seed: int = 0) -> ExpertWeights:
    random = torch.Generator().manual_seed(seed)
    return ExpertWeights(
        torch.randn(E, 2 * INNER, H, generator=random) / H**0.5, torch.randn(E, H, INNER, generator=random) / INNER**0.5
    )


def some(m: int) -> ExpertRows:
    weights, ids = torch.rand(m, E).topk(CHOSEN, dim=1)
    return ExpertRows(torch.randn(m, H), weights, ids.to(torch.int32))


def applied(model: Model, rows: ExpertRows, step: StepPlan, layer: int = 0) -> torch.Tensor:
    with steps.forced(step):
        return method_of(model, layer).apply(model.experts[layer], rows.x, rows.weights, rows.ids, None, None)


@pytest.fixture
def loaded() -> Model:
    model = model_of("mixquant-fp8")
    model.load(random_weights())
    model.finish()
    return model


def test_exact_rows_are_the_models_and_quantized_ones_near_them(loaded: Model) -> None:
    rows = some(9)
    exact, quantized = applied(loaded, rows, EXACT), applied(loaded, rows, QUANTIZED)
    torch.testing.assert_close(exact.double(), by_loop(rows, random_weights()), rtol=1e-4, atol=1e-6)
    error = (quantized - exact).norm() / exact.norm()
    assert 0.01 < error < 0.1
    index = torch.tensor([2, 5])
    others = torch.tensor([m for m in range(9) if m not in (2, 5)])
    mixed = applied(loaded, rows, StepPlan(Mode.MIXED, 9, exact_rows=index, quantized_rows=others))
    torch.testing.assert_close(mixed[index], exact[index])
    torch.testing.assert_close(mixed[others], quantized[others])


def test_status_names_layers_and_bytes(loaded: Model) -> None:
    status = method_of(loaded)._runtime.status()
    assert status["routed_layers"] == 1
    assert status["layer_formats"] == {"fp8-emulated": 1}
    assert status["expert_layers"]["quantized"] == [PREFIX.format(0)]
    assert status["twin_bytes"] >= 4 * 3 * E * H * INNER


def test_reloaded_weights_give_the_twin_new_values_where_it_lies(loaded: Model) -> None:
    method, rows = method_of(loaded), some(7)
    twin = method.twin
    places = {name: tensor.data_ptr() for name, tensor in twin.tensors(method.state).items()}
    for seed in (3, 4):
        weights = random_weights(seed)
        loaded.reload(weights)
        assert {name: tensor.data_ptr() for name, tensor in twin.tensors(method.state).items()} == places
        torch.testing.assert_close(applied(loaded, rows, EXACT).double(), by_loop(rows, weights), rtol=1e-4, atol=1e-6)
        expected = twin.product(rows, twin.build(weights, method.layer), method.layer)
        torch.testing.assert_close(applied(loaded, rows, QUANTIZED), expected)


def test_as_many_layers_as_fit_have_twins_and_keep_them_under_another_policy() -> None:
    needed = method_of(model_of("mixquant-fp8")).twin.nbytes(
        method_of(model_of("mixquant-fp8")).layer.shape, torch.float32
    )
    limit = 2.5 * needed / 2**30
    model = model_of(PrecisionPolicy(prefill_format="fp8", expert_twins_gib=limit), layers=4)
    for layer in range(4):
        model.load(random_weights(layer), layer)
    model.finish()
    runtime = method_of(model)._runtime
    exact = [PREFIX.format(layer) for layer in (0, 1)]
    assert runtime.status()["expert_layers"]["exact"] == exact
    rows = some(5)
    for layer in range(4):
        same = torch.equal(applied(model, rows, EXACT, layer), applied(model, rows, QUANTIZED, layer))
        assert same == (layer < 2)
    runtime.set_policy(PrecisionPolicy(prefill_format="int8", expert_twins_gib=limit))
    assert [method_of(model, layer).layer_format is None for layer in range(4)] == [True, True, False, False]


def test_twins_come_from_a_checkpoint(tmp_path: Path) -> None:
    weights = random_weights()
    names = {
        "gate_proj": lambda e: weights.up[e, :INNER],
        "up_proj": lambda e: weights.up[e, INNER:],
        "down_proj": lambda e: weights.down[e],
    }
    content = {}
    for e in range(E):
        for part, weight in names.items():
            whole = weights.down[e] if part == "down_proj" else weights.up[e]
            made = nvfp4.quantize(weight(e), nvfp4.tensor_global_scale(whole))
            name = f"{PREFIX.format(0)}.{e}.{part}.weight"
            content |= {f"{name}_packed": made.packed, f"{name}_scale": made.scales}
            content[f"{name}_global_scale"] = made.global_scale.reshape(1)
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / "model.safetensors")
    model = model_of(PrecisionPolicy(prefill_format="nvfp4", prefill_checkpoint=str(tmp_path)))
    model.load(weights)
    model.finish()
    method, rows = method_of(model), some(6)
    made_here = method.twin.product(rows, method.twin.build(weights, method.layer), method.layer)
    torch.testing.assert_close(applied(model, rows, QUANTIZED), made_here)
    model.reload(weights)
    with pytest.raises(ConfigError, match=r"prefill_checkpoint=.*start another engine"):
        model.reload(random_weights(8))


def test_checkpoint_without_the_experts_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    save_file({"model.layers.0.other.weight_packed": torch.zeros(2, 2, dtype=torch.uint8)}, tmp_path / "m.safetensors")
    with pytest.raises(FormatRefusedError, match=r"experts\.0\.gate_proj"):
        model_of(PrecisionPolicy(prefill_format="nvfp4", prefill_checkpoint=str(tmp_path)))


def test_activation_that_emulation_does_not_know_is_refused_by_name() -> None:
    own = SimpleNamespace(activation=SimpleNamespace(name="SWIGLUOAI"), swiglu_limit=7.0)
    with pytest.raises(ConfigError, match=r"'swigluoai' with swiglu_limit=7.0.*ignored_layers"):
        method_of(model_of("mixquant-fp8"))._activation(own)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"dp_size": 2}, "data_parallel_size=2"),
        ({"is_sequence_parallel": True}, "sequence parallelism"),
        ({"is_lora_enabled": True}, "enable_lora"),
    ],
)
def test_what_routing_does_not_follow_is_refused_by_name(setting: dict[str, Any], name: str) -> None:
    plain = {"dp_size": 1, "is_sequence_parallel": False, "is_lora_enabled": False}
    parallel = SimpleNamespace(enable_eplb=False)
    refuse("a.experts", SimpleNamespace(moe_parallel_config=parallel, **plain))
    with pytest.raises(ConfigError, match=f"'a.experts'.*{name}.*ignored_layers"):
        refuse("a.experts", SimpleNamespace(moe_parallel_config=parallel, **{**plain, **setting}))
    with pytest.raises(ConfigError, match="enable_eplb"):
        refuse("a.experts", SimpleNamespace(moe_parallel_config=SimpleNamespace(enable_eplb=True), **plain))


def test_experts_have_a_format_of_their_own() -> None:
    policy = PrecisionPolicy(prefill_format="nvfp4", formats={"experts": "fp8"})
    assert method_of(model_of(policy)).twin.name == "fp8-emulated"


def test_4_6_block_scales_of_experts_inputs_are_refused_by_name() -> None:
    """vLLM's kernel quantizes them itself."""
    shape = SimpleNamespace(up=256, hidden=128, inner=128)
    own = SimpleNamespace(moe_config=SimpleNamespace(has_bias=False))
    layer: Any = SimpleNamespace(shape=shape, own=own, weight_on_input=False, prefix="a.experts")
    with pytest.raises(FormatRefusedError, match=r"a\.experts.*activation_scales='4/6'.*{'experts': 'fp8'}"):
        Nvfp4Experts("nvfp4-native-a46", Recipe(activation_scales="4/6")).prepare(layer)


def test_ignored_experts_stay_exact_until_another_policy_routes_them() -> None:
    model = model_of(PrecisionPolicy(prefill_format="fp8", ignored_layers=("re:.*experts",)))
    model.load(random_weights())
    model.finish()
    rows, method = some(4), method_of(model)
    assert torch.equal(applied(model, rows, QUANTIZED), applied(model, rows, EXACT))
    method._runtime.set_policy(PrecisionPolicy.of("mixquant-fp8"))
    assert not torch.equal(applied(model, rows, QUANTIZED), applied(model, rows, EXACT))


def test_weights_in_the_order_of_another_kernel_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As FlashInfer keeps them: what the plugin still needs lies in the host's memory, in memory of its own."""
    from mixquant_agents.quant.vllm.experts import method as module

    def reorder(self: Any, layer: Any) -> None:
        flipped = torch.nn.Parameter(layer.w13_weight.data.flip(1), requires_grad=False)
        layer.register_parameter("w13_weight", flipped)

    monkeypatch.setattr(module.UnquantizedFusedMoEMethod, "process_weights_after_loading", reorder)
    model = model_of("mixquant-fp8")
    model.load(random_weights())
    first = model.experts[0].w13_weight.data_ptr()
    with monkeypatch.context() as patch:
        patch.setattr(module, "current_platform", SimpleNamespace(is_cpu=lambda: False))
        model.finish()
    method = method_of(model)
    assert torch.equal(method.weights.up, random_weights().up)
    assert method.weights.up.data_ptr() not in {first, model.experts[0].w13_weight.data_ptr()}
    assert method.shape[:3] == (E, 2 * INNER, H)
