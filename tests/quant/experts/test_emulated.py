"""Experts in every number format: each as a Linear of that format."""

from __future__ import annotations

import pytest
import torch
from mixtures import LAYER, SHAPE, random_rows, random_weights

from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.emulated import EmulatedExperts
from mixquant_agents.quant.experts.layer import ExpertWeights
from mixquant_agents.quant.experts.reference import exact_experts, expert_by_expert
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.sources import PlainRows


def experts_in(number_format: NumberFormat) -> EmulatedExperts:
    return EmulatedExperts(emulated_twin(LayerFormat(number_format, emulated=True)))


@pytest.mark.parametrize("number_format", list(FORMATS))
def test_each_expert_is_a_linear_of_the_format(number_format: NumberFormat) -> None:
    linear, weights, rows = emulated_twin(LayerFormat(number_format, emulated=True)), random_weights(), random_rows(11)
    twin = experts_in(number_format)
    found = twin.product(rows, twin.build(weights, LAYER), LAYER)
    expected = expert_by_expert(
        rows,
        LAYER,
        lambda e, x: linear.product(PlainRows(x), linear.build(weights.up[e])),
        lambda e, x: linear.product(PlainRows(x), linear.build(weights.down[e])),
    )
    assert torch.equal(found, expected)
    exact = exact_experts(rows, LAYER, weights)
    error = (found - exact).norm() / exact.norm()
    assert 0.001 < error < (0.1 if number_format in (NumberFormat.FP8, NumberFormat.INT8) else 0.4)


def test_biases_stay_exact() -> None:
    weights, rows, twin = random_weights(biased=True), random_rows(11), experts_in(NumberFormat.INT8)
    found, exact = twin.product(rows, twin.build(weights, LAYER), LAYER), exact_experts(rows, LAYER, weights)
    assert (found - exact).norm() / exact.norm() < 0.03
    unbiased = exact_experts(rows, LAYER, weights._replace(up_bias=None, down_bias=None))
    assert (unbiased - exact).norm() / exact.norm() > 0.3


@pytest.mark.parametrize("number_format", list(FORMATS))
def test_new_weights_take_the_place_of_the_old_ones(number_format: NumberFormat) -> None:
    twin, rows, other = experts_in(number_format), random_rows(6), random_weights(seed=5)
    state = twin.build(random_weights(), LAYER)
    places = {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()}
    twin.renew(state, twin.build(other, LAYER))
    assert {name: tensor.data_ptr() for name, tensor in twin.tensors(state).items()} == places
    assert torch.equal(twin.product(rows, state, LAYER), twin.product(rows, twin.build(other, LAYER), LAYER))


def test_weights_that_were_quantized_before_are_taken_as_they_are() -> None:
    twin, rows, weights = experts_in(NumberFormat.NVFP4), random_rows(6), random_weights()
    up, down = ([nvfp4.quantize(each, nvfp4.tensor_global_scale(each)) for each in part] for part in weights[:2])
    noise = ExpertWeights(torch.randn_like(weights.up), torch.randn_like(weights.down))
    adopted = twin.adopt(up, down, noise, LAYER)
    torch.testing.assert_close(
        twin.product(rows, adopted, LAYER), twin.product(rows, twin.build(weights, LAYER), LAYER)
    )


@pytest.mark.parametrize("number_format", list(FORMATS))
def test_bytes_are_those_of_the_tensors(number_format: NumberFormat) -> None:
    twin = experts_in(number_format)
    tensors = twin.tensors(twin.build(random_weights(), LAYER)).values()
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert held <= twin.nbytes(SHAPE, torch.float32) <= 1.1 * held + 4 * SHAPE.experts * (SHAPE.up + SHAPE.hidden)
