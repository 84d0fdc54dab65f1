"""Emulated twins equal the plain references: grid values bit for bit, products within float32 matmul tolerance."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.formats.registry import format_of, twin_of
from mixquant_agents.quant.numerics import e2m1, nvfp4
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.twins.emulated import EmulatedTwin, Grid

AWKWARD = (1, 15, 16, 17, 63, 1000)


def sample(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.logspace(-6, 4, rows).unsqueeze(1)


def emulated(name: NumberFormat, *, weight_only: bool = False) -> EmulatedTwin:
    twin = twin_of(LayerFormat(name, emulated=True, weight_only=weight_only))
    assert isinstance(twin, EmulatedTwin)
    return twin


def product(twin: EmulatedTwin, x: torch.Tensor, state: Grid) -> torch.Tensor:
    return twin.product(PlainRows(x), state)


@pytest.mark.parametrize("columns", AWKWARD)
@pytest.mark.parametrize("name", list(FORMATS))
def test_fast_rounding_equals_the_reference_bit_for_bit(name: NumberFormat, columns: int) -> None:
    x = sample(41, columns)
    x[3] = 0
    grid, scale = format_of(name).split_rows(x)
    assert torch.equal(grid * scale, format_of(name).reference(x))
    weight, weight_scale = format_of(name).split_weight(x)
    expected = format_of(name).reference_weight(x)
    torch.testing.assert_close(weight * weight_scale, expected, rtol=2**-22, atol=0)  # x·(1/s) against x/s


@pytest.mark.parametrize("size", [1.5e-45, 1e-43, 1e-42, 1e-38, 3e38])
@pytest.mark.parametrize("name", list(FORMATS))
def test_rows_at_the_ends_of_float32_stay_numbers(name: NumberFormat, size: float) -> None:
    x = torch.full((2, 32), size)
    x[:, ::2] *= -1
    grid, scale = format_of(name).split_rows(x)
    assert torch.equal(grid * scale, format_of(name).reference(x))
    assert torch.isfinite(grid * scale).all()


def test_fast_nvfp4_rounding_of_ties_and_subnormal_scales() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2)
    rows = torch.cat([torch.cat([ties * 2.0**-k, -ties]).unsqueeze(0) for k in range(24)])
    grid, scale = nvfp4.split_scaled(rows, torch.ones(()))
    assert torch.equal(grid * scale, format_of(NumberFormat.NVFP4).reference(rows))
    assert (grid[-1, :16] == 0).all(), "the last row's first block must underflow for this test to cover it"


def test_e2m1_neighbourhoods_round_like_the_reference() -> None:
    x = torch.linspace(-7, 7, 56_000).reshape(-1, 16)
    expected = e2m1.round_e2m1(x)
    assert torch.equal(e2m1.round_e2m1_(x.clone()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows", AWKWARD)
@pytest.mark.parametrize("columns", [15, 17, 576])
@pytest.mark.parametrize("name", list(FORMATS))
def test_twin_product_equals_the_product_of_the_references(name: NumberFormat, rows: int, columns: int) -> None:
    x, w = sample(rows, columns), sample(63, columns, seed=1)
    twin = emulated(name)
    y = product(twin, x, twin.build(w))
    expected = format_of(name).reference(x).double() @ format_of(name).reference_weight(w).double().T
    bound = format_of(name).reference(x).double().abs() @ format_of(name).reference_weight(w).double().abs().T
    assert ((y - expected).abs() <= bound * 2.0**-20 + 1e-30).all()


@pytest.mark.parametrize("name", list(FORMATS))
def test_weight_only_leaves_activations_alone(name: NumberFormat) -> None:
    x, w = sample(17, 96), sample(40, 96, seed=1)
    twin = emulated(name, weight_only=True)
    y, rounded = product(twin, x, twin.build(w)), format_of(name).reference_weight(w).double()
    assert ((y - x.double() @ rounded.T).abs() <= (x.double().abs() @ rounded.abs().T) * 2.0**-20 + 1e-30).all()


@pytest.mark.parametrize("name", list(FORMATS))
def test_bfloat16_twins_hold_the_same_grid(name: NumberFormat) -> None:
    w = sample(40, 96, seed=1).bfloat16()
    twin = emulated(name)
    narrow, wide = twin.build(w), twin.build(w.float())
    assert narrow[0].dtype is torch.bfloat16
    assert torch.equal(narrow[0].float(), wide[0])
    x = sample(9, 96).bfloat16()
    y = product(twin, x, narrow)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), product(twin, x.float(), wide), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", list(FORMATS))
def test_rows_never_depend_on_each_other(name: NumberFormat) -> None:
    x, w = sample(16, 64), sample(24, 64, seed=1)
    twin = emulated(name)
    tensors = twin.build(w)
    x[5] = float("nan")
    together = product(twin, x, tensors)
    for row in (0, 4, 6, 15):
        alone = product(twin, x[row : row + 1], tensors)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-30)
    assert together[5].isnan().all()


def test_building_a_twin_does_not_change_the_weight() -> None:
    w = sample(24, 63)
    before = w.clone()
    for name in FORMATS:
        emulated(name).build(w)
    assert torch.equal(w, before)


def test_weight_only_twins_share_the_weights_of_the_others() -> None:
    twin, weight_only = emulated(NumberFormat.FP8), emulated(NumberFormat.FP8, weight_only=True)
    assert twin.build_key == weight_only.build_key
    assert twin.build_key != emulated(NumberFormat.INT8).build_key
    assert twin is emulated(NumberFormat.FP8), "one object for each"


def test_parts_of_a_fused_weight_multiply_as_the_whole() -> None:
    x, w = sample(5, 64), sample(40, 64, seed=1)
    for name in FORMATS:
        twin = emulated(name)
        state = twin.build(w)
        parts = [product(twin, x, part) for part in state.split([24, 16])]
        torch.testing.assert_close(torch.cat(parts, dim=1), product(twin, x, state))
        assert twin.nbytes(40, 64, w.dtype) >= sum(t.numel() * t.element_size() for t in state)
