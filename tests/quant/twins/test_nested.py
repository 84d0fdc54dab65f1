"""Twins within the exact weight: exact rows see every bit of it, quantized rows its codes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixquant_agents.errors import ConfigError, EngineStartError, FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.kernel_check import ExactUnit, Unit, check
from mixquant_agents.quant.nested.layout import rebuild
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.ops.linear import gpu_add_norm_linear, gpu_linear, gpu_norm_linear, gpu_silu_linear
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan, forced
from mixquant_agents.quant.twins import nested
from mixquant_agents.quant.twins.nested import EmulatedNestedTwin, NestedTwin
from mixquant_agents.quant.twins.registry import register

N, K = 32, 128
NATIVE = LayerFormat(NumberFormat.FP8, emulated=False, nested=True)
EMULATED = dataclasses.replace(NATIVE, emulated=True)


def weight_of(seed: int, dtype: torch.dtype = torch.bfloat16, rows: int = N) -> torch.Tensor:
    weight = (torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)) * 0.05).bfloat16()
    weight[1, 5], weight[2, 6] = 1e-20, float.fromhex("0x1p-130")  # far below their channels' largest
    return weight.to(dtype)


def native() -> NestedTwin:
    twin = twin_of(NATIVE)
    assert isinstance(twin, NestedTwin)
    return twin


def test_formats_have_names_of_their_own() -> None:
    assert (NATIVE.name, EMULATED.name) == ("fp8-native-nested", "fp8-emulated-nested")
    assert native().captured
    assert isinstance(twin_of(EMULATED), EmulatedNestedTwin)
    with pytest.raises(FormatRefusedError, match="nvfp4"):
        twin_of(LayerFormat(NumberFormat.NVFP4, emulated=True, nested=True))


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_exact_rows_are_those_of_the_weight_bit_for_bit(seed: int) -> None:
    for layer_format, dtype in ((NATIVE, torch.bfloat16), (EMULATED, torch.float32)):
        weight = weight_of(seed, dtype)
        twin = twin_of(layer_format)
        state = twin.build(weight)
        x = torch.randn(5, K).to(dtype)
        assert torch.equal(twin.exact(x, twin.operand(weight, state), state), torch.nn.functional.linear(x, weight))
        assert torch.equal(twin.exact_weight(twin.operand(weight, state), state), weight)


def test_native_and_emulated_products_agree() -> None:
    weight = weight_of(0)
    x, bias = torch.randn(7, K).bfloat16(), torch.randn(N).bfloat16()
    answers = []
    for layer_format in (NATIVE, EMULATED):
        twin = twin_of(layer_format)
        answers.append(twin.product(PlainRows(x), twin.build(weight), bias).float())
    assert (answers[0] - answers[1]).norm() / answers[1].norm() < 0.006
    exact = torch.nn.functional.linear(x, weight, bias).float()
    assert 0.01 < (answers[0] - exact).norm() / exact.norm() < 0.06, "the format's own error"


def test_routed_operations_route_rows_of_a_layer_without_an_exact_weight() -> None:
    """All forms of the operation, all modes: the answers of a layer that has both weights."""
    twin, weight = native(), weight_of(3)
    state = twin.build(weight)
    codes = twin.operand(weight, state)
    assert (codes.dtype, codes.shape) == (torch.float8_e4m3fn, weight.shape)
    held = register(codes, twin, state)
    x, residual = torch.randn(9, K).bfloat16(), torch.randn(9, K).bfloat16()
    gamma, index = torch.rand(K).bfloat16(), torch.tensor([2, 7, -1], dtype=torch.int32)
    for operation, arguments in (
        (gpu_linear, (x,)),
        (gpu_norm_linear, (x, gamma, 1e-6)),
        (lambda *a: gpu_add_norm_linear(*a)[0], (x, residual, gamma, 1e-6)),
        (gpu_silu_linear, (torch.cat((x, residual), 1),)),
    ):
        with forced(EXACT):
            exact = operation(*arguments, codes, None)
            assert torch.equal(exact, operation(*arguments, weight, None))
        with forced(QUANTIZED):
            quantized = operation(*arguments, codes, None)
        with forced(StepPlan(Mode.MIXED, 9, exact_rows=index)):
            mixed = operation(*arguments, codes, None)
        chosen = torch.tensor([row in (2, 7) for row in range(9)])
        torch.testing.assert_close(mixed[chosen], exact[chosen])
        torch.testing.assert_close(mixed[~chosen], quantized[~chosen])
        assert not torch.equal(exact, quantized)
    assert held.twin is twin


def test_eager_steps_multiply_exact_rows_by_what_came_out_of_twelve_bits() -> None:
    twin, weight = twin_of(EMULATED), weight_of(4, torch.float32)
    state = twin.build(weight)
    x = torch.randn(6, K)
    plan = StepPlan(Mode.MIXED, 6, exact_rows=torch.tensor([1, 4]), quantized_rows=torch.tensor([0, 2, 3, 5]))
    answer = eager_linear(x, torch.full_like(weight, torch.nan), None, twin, state, plan)
    assert torch.equal(answer[[1, 4]], torch.nn.functional.linear(x[[1, 4]], weight))
    assert torch.equal(answer[[0, 2, 3, 5]], twin.product(PlainRows(x[[0, 2, 3, 5]]), state))


def test_reload_keeps_tensors_in_place_and_refuses_a_full_table() -> None:
    twin = native()
    state = twin.build(weight_of(5))
    places = {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()}
    other = weight_of(6)
    other[:, ::20] *= 2.0**-30  # many more escapes than before
    twin.renew(state, twin.build(other))
    assert {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()} == places
    assert torch.equal(twin.exact_weight(other, state), other)
    worse = weight_of(7)
    worse[:, ::9] *= 2.0**-30
    with pytest.raises(ConfigError, match=r"4\d\d values far below.*table made at start holds.*start another engine"):
        twin.renew(state, twin.build(worse))


def test_weights_that_are_no_bf16_numbers_are_refused() -> None:
    for layer_format in (NATIVE, EMULATED):
        with pytest.raises(FormatRefusedError, match=f"{layer_format.name}.*float32 that bfloat16 has not"):
            twin_of(layer_format).build(torch.full((N, K), 0.1))


def test_weight_that_does_not_come_back_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "exact_weight", lambda held: rebuild(held) * 2)
    with pytest.raises(EngineStartError, match="did not come back"):
        native().build(weight_of(8))


@pytest.mark.parametrize("layer_format", [NATIVE, EMULATED], ids=lambda each: each.name)
@pytest.mark.parametrize("shape", [(40, 128), (32, 96)])
def test_shapes_that_do_not_nest_are_refused_by_name(layer_format: LayerFormat, shape: tuple[int, int]) -> None:
    with pytest.raises(FormatRefusedError, match=r"'a\.b\.up_proj' has.*'up_proj' to ignored_layers.*'separate'"):
        twin_of(layer_format).check(*shape, "a.b.up_proj")


def test_bytes_are_those_that_were_foreseen_and_three_quarters_of_bf16() -> None:
    twin = native()
    weight = (torch.randn(1024, 2048, generator=torch.Generator().manual_seed(9)) * 0.02).bfloat16()
    state = twin.build(weight)
    held = sum(t.numel() * t.element_size() for t in twin.tensors(state).values())
    assert held <= twin.nbytes(*weight.shape, weight.dtype) < 1.01 * held
    assert held / weight.nbytes < 0.757


def test_products_are_held_against_references_exact_rows_too() -> None:
    twin, weight = native(), weight_of(10)
    unit = Unit("a.up_proj", NATIVE, twin, weight, twin.build(weight))
    errors = check([unit, ExactUnit(unit)]).errors
    assert max(errors.values()) < 0.006
    assert set(errors) == {"fp8-native-nested 32x128", "fp8-native-nested 32x128, exact rows"}
    other = twin.build(weight_of(11))
    wrong = dataclasses.replace(unit, state=other)
    for trial in (wrong, ExactUnit(wrong)):
        with pytest.raises(FormatRefusedError, match="wrong on this device"):
            check([trial])
