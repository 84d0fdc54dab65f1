"""Channel scales: powers of two, never worse than none, and the same in fused, plain and emulated products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.quant.calibration.channels import balanced
from mixquant_agents.quant.formats.registry import format_of
from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.sources import AddNormRows, ExactRows, NormRows, PlainRows, RowSource, SiluRows
from mixquant_agents.quant.twins.calibrated import LayerCalibration

K = 64


def _inputs(outlier: float) -> torch.Tensor:
    x = torch.randn(256, K, generator=torch.Generator().manual_seed(1))
    x[:, ::16] *= outlier  # one loud channel in each block
    return x


def _weight() -> torch.Tensor:
    return torch.randn(48, K, generator=torch.Generator().manual_seed(2))


def _product_error(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> float:
    calibration = LayerCalibration(channel_scale=scale)
    twin = format_of(NumberFormat.NVFP4).emulated("nvfp4", weight_only=False, recipe=Recipe())
    product = twin.product(PlainRows(x), twin.build(weight, calibration))
    return float((product - x @ weight.T).square().sum())


def test_loud_channels_are_made_quieter_and_products_come_nearer() -> None:
    x, weight = _inputs(40.0), _weight()
    scale = balanced(weight, x.T @ x, x, x.abs().amax(0))
    assert scale[::16].max() < scale[1:16].min()
    assert _product_error(x, weight, scale) < 0.6 * _product_error(x, weight, None)


@given(st.integers(-3, 12), st.integers(0, 2**16))
def test_scales_are_powers_of_two(outlier: int, seed: int) -> None:
    x = torch.randn(64, K, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 2.0**outlier
    scale = balanced(_weight(), x.T @ x, x, x.abs().amax(0))
    assert torch.equal(scale.log2(), scale.log2().round())


def test_channels_that_never_speak_leave_scales_finite() -> None:
    x = _inputs(40.0)
    x[:, 7] = 0
    assert balanced(_weight(), x.T @ x, x, x.abs().amax(0)).isfinite().all()
    assert torch.equal(balanced(_weight(), torch.zeros(K, K), x * 0, x[0] * 0), torch.ones(K))


def _sources(dtype: torch.dtype) -> list[RowSource]:
    made = torch.Generator().manual_seed(3)
    x, residual = (torch.randn(9, K, generator=made).to(dtype) for _ in range(2))
    gamma = torch.rand(K, generator=made).to(dtype)
    halves = torch.randn(9, 2 * K, generator=made).to(dtype)
    return [PlainRows(x), NormRows(x, gamma, 1e-6), AddNormRows(x, residual, gamma, 1e-6), SiluRows(halves)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("number", range(4))
def test_scaled_rows_are_rows_times_scales_and_exact_rows_are_not(dtype: torch.dtype, number: int) -> None:
    scale = torch.exp2(torch.randint(-4, 5, (K,), generator=torch.Generator().manual_seed(4)).float())
    rows = _sources(dtype)[number].rows()
    slot = torch.full((3, K), 7.0, dtype=dtype)
    exact = ExactRows(torch.tensor([8, 0, 4], dtype=torch.int32), slot)
    scaled = _sources(dtype)[number].rows_with(exact, scale)
    assert torch.equal(scaled, (rows.double() * scale.double()).to(dtype))
    assert torch.equal(slot, rows[[8, 0, 4]])


def test_twins_rounded_beforehand_meet_scaled_channels() -> None:
    x, weight = _inputs(40.0), _weight()
    scale = balanced(weight, x.T @ x, x, x.abs().amax(0))
    divided = weight / scale
    twin = nvfp4.quantize(divided, nvfp4.tensor_global_scale(divided))
    emulated = format_of(NumberFormat.NVFP4).emulated("nvfp4", weight_only=False, recipe=Recipe("gptq"))
    state = emulated.build(weight, LayerCalibration(twin=twin, channel_scale=scale))
    nearest = format_of(NumberFormat.NVFP4).emulated("nvfp4", weight_only=False, recipe=Recipe())
    expected = nearest.product(PlainRows(x), nearest.build(weight, LayerCalibration(channel_scale=scale)))
    assert torch.equal(emulated.product(PlainRows(x), state), expected)
