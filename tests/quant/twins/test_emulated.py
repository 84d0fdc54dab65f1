"""Emulated twins equal the plain references: grid values bit for bit, products within float32 matmul tolerance."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.formats import emulation as emulate
from mixquant_agents.quant.formats import fp8, int8, nvfp4
from mixquant_agents.quant.twins.base import get_twin, twin_key

AWKWARD = (1, 15, 16, 17, 63, 1000)
CPU = DeviceInfo("cpu", "cpu")


def sample(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.logspace(-6, 4, rows).unsqueeze(1)


def plain_rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """Rounded activations by the reference."""
    if name == "nvfp4":
        return nvfp4.dequantize(nvfp4.quantize(x, nvfp4.row_global_scale(x)))
    module = fp8 if name == "fp8" else int8
    return module.dequantize(module.quantize(x))


def plain_weight(name: str, w: torch.Tensor) -> torch.Tensor:
    """Rounded weights by the reference."""
    if name == "nvfp4":
        return nvfp4.dequantize(nvfp4.quantize(w, nvfp4.tensor_global_scale(w)))
    return plain_rows(name, w)


ROWS = {"nvfp4": emulate.nvfp4_rows, "fp8": emulate.fp8_rows, "int8": emulate.int8_rows}


@pytest.mark.parametrize("columns", AWKWARD)
@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_fast_rounding_equals_the_reference_bit_for_bit(name: str, columns: int) -> None:
    x = sample(41, columns)
    x[3] = 0
    grid, scale = ROWS[name](x)
    if name == "nvfp4":  # power-of-two scales: exact either way
        assert torch.equal(grid * scale, plain_rows(name, x))
    else:
        q = (fp8 if name == "fp8" else int8).quantize(x)
        assert torch.equal(grid, q.values.float())
        assert torch.equal(scale, q.scales)


@pytest.mark.parametrize("size", [1.5e-45, 1e-43, 1e-42, 1e-38, 3e38])
@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_rows_at_the_ends_of_float32_stay_numbers(name: str, size: float) -> None:
    x = torch.full((2, 32), size)
    x[:, ::2] *= -1
    grid, scale = ROWS[name](x)
    assert torch.equal(grid * scale, plain_rows(name, x))
    assert torch.isfinite(grid * scale).all()


def test_fast_nvfp4_rounding_of_ties_and_subnormal_scales() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2)
    rows = torch.cat([torch.cat([ties * 2.0**-k, -ties]).unsqueeze(0) for k in range(24)])
    grid, scale = emulate.nvfp4_rows(rows)
    assert torch.equal(grid * scale, plain_rows("nvfp4", rows))
    assert (grid[-1, :16] == 0).all(), "the last row's first block must underflow for this test to cover it"


def test_every_e2m1_neighbourhood_rounds_like_the_reference() -> None:
    x = torch.linspace(-7, 7, 56_000).reshape(-1, 16)
    expected = nvfp4.round_e2m1(x)
    assert torch.equal(emulate._round_e2m1_(x.clone()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows", AWKWARD)
@pytest.mark.parametrize("columns", [15, 17, 576])
@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_twin_product_equals_the_product_of_the_references(name: str, rows: int, columns: int) -> None:
    x, w = sample(rows, columns), sample(63, columns, seed=1)
    twin = get_twin(f"{name}-emulated")
    y = twin.apply(x, twin.build(w))
    expected = plain_rows(name, x).double() @ plain_weight(name, w).double().T
    bound = plain_rows(name, x).double().abs() @ plain_weight(name, w).double().abs().T
    assert ((y - expected).abs() <= bound * 2.0**-20 + 1e-30).all()


@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_weight_only_leaves_activations_alone(name: str) -> None:
    x, w = sample(17, 96), sample(40, 96, seed=1)
    twin = get_twin(f"{name}-emulated-weight-only")
    y, rounded = twin.apply(x, twin.build(w)), plain_weight(name, w).double()
    assert ((y - x.double() @ rounded.T).abs() <= (x.double().abs() @ rounded.abs().T) * 2.0**-20 + 1e-30).all()


@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_bfloat16_twins_hold_the_same_grid(name: str) -> None:
    w = sample(40, 96, seed=1).bfloat16()
    twin = get_twin(f"{name}-emulated")
    narrow, wide = twin.build(w), twin.build(w.float())
    assert narrow[0].dtype is torch.bfloat16
    assert torch.equal(narrow[0].float(), wide[0])
    x = sample(9, 96).bfloat16()
    y = twin.apply(x, narrow)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), twin.apply(x.float(), wide), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["nvfp4", "fp8", "int8"])
def test_rows_never_depend_on_each_other(name: str) -> None:
    x, w = sample(16, 64), sample(24, 64, seed=1)
    twin = get_twin(f"{name}-emulated")
    tensors = twin.build(w)
    x[5] = float("nan")
    together = twin.apply(x, tensors)
    for row in (0, 4, 6, 15):
        alone = twin.apply(x[row : row + 1], tensors)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-30)
    assert together[5].isnan().all()


def test_building_a_twin_does_not_change_the_weight() -> None:
    w = sample(24, 63)
    before = w.clone()
    for name in ("nvfp4", "fp8", "int8"):
        get_twin(f"{name}-emulated").build(w)
    assert torch.equal(w, before)


def test_keys_name_format_and_kind() -> None:
    policies = {
        "": PrecisionPolicy.of("exact"),
        "nvfp4-emulated": PrecisionPolicy.of("mixquant-nvfp4"),
        "fp8-emulated-weight-only": PrecisionPolicy(prefill_format="fp8", weight_only=True),
    }
    for key, policy in policies.items():
        assert twin_key(resolve(policy, CPU)) == key


def test_an_unknown_twin_is_refused_by_name() -> None:
    with pytest.raises(FormatRefusedError, match="nvfp5-native"):
        get_twin("nvfp5-native")
