"""The plain product of experts, against a loop over rows in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mixtures import LAYER, SHAPE, by_loop, random_rows, random_weights

from mixquant_agents.quant.experts.activations import ACTIVATIONS
from mixquant_agents.quant.experts.layer import ExpertRows
from mixquant_agents.quant.experts.reference import exact_experts


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("m", [1, 7, 33])
def test_product_is_the_loops(m: int, biased: bool) -> None:
    rows, weights = random_rows(m), random_weights(biased=biased)
    torch.testing.assert_close(
        exact_experts(rows, LAYER, weights).double(), by_loop(rows, weights), rtol=1e-5, atol=1e-6
    )


def test_weight_on_the_input_multiplies_there_and_not_again() -> None:
    layer = dataclasses.replace(LAYER, weight_on_input=True)
    rows, weights = random_rows(9), random_weights()
    found = exact_experts(rows, layer, weights).double()
    torch.testing.assert_close(found, by_loop(rows, weights, layer), rtol=1e-5, atol=1e-6)


def test_ranks_with_parts_of_the_experts_add_up_to_the_whole() -> None:
    rows, weights = random_rows(21), random_weights()
    whole = exact_experts(rows, LAYER, weights)
    parts = []
    for mine in ([0, 2], [1, 3]):
        expert_map = torch.full((SHAPE.experts,), -1)
        expert_map[mine] = torch.arange(2)
        layer = dataclasses.replace(LAYER, expert_map=lambda expert_map=expert_map: expert_map)
        parts.append(exact_experts(rows, layer, type(weights)(weights.up[mine], weights.down[mine])))
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_rows_that_chose_nobody_come_out_as_zeros() -> None:
    rows = random_rows(5)
    ids = rows.ids.clone()
    ids[3] = -1
    found = exact_experts(ExpertRows(rows.x, rows.weights, ids), LAYER, random_weights())
    assert not found[3].any()
    assert found[[0, 1, 2, 4]].any(dim=1).all()


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_are_vllms(name: str) -> None:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    assert MoEActivation.from_str(name).value == name
    x = torch.randn(3, 8)
    found = ACTIVATIONS[name](x)
    gate, up = (x, 1.0) if name.endswith("_no_mul") else x.chunk(2, dim=1)
    of = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh"),
        "relu2": lambda t: torch.relu(t) ** 2,
    }[name.removesuffix("_no_mul")]
    torch.testing.assert_close(found, of(gate) * up)
