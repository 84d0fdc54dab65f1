"""The plain reference of 8-bit rows: against vLLM's rule, first principles, and its fast form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.quant.numerics import rowwise

DTYPES = [torch.float8_e4m3fn, torch.int8]
AWKWARD = (1, 15, 16, 17, 63, 1000)


def sample(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different magnitudes, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.logspace(-6, 4, rows).unsqueeze(1)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float8_e4m3fn, 448.0), (torch.int8, 127.0)])
def test_codes_are_the_nearest_of_a_scale_that_fills_the_range(dtype: torch.dtype, limit: float) -> None:
    x = sample(9, 128)
    codes, scales = rowwise.quantize(x, dtype)
    assert torch.equal(scales, x.abs().amax(1, keepdim=True) / limit)
    assert (codes.float().abs().amax(1) == limit).all()
    # As vLLM does it: divided by the scale. A multiplication by its reciprocal may differ where a value is a tie.
    divided = (x / scales).clamp(-limit, limit)
    divided = (divided.round() if dtype is torch.int8 else divided).to(dtype).float()
    step = divided.abs() / 8 if dtype is torch.float8_e4m3fn else torch.ones_like(divided)
    assert ((codes.float() - divided).abs() <= step).all()
    assert (codes.float() != divided).float().mean() < 1e-3


@pytest.mark.parametrize("columns", AWKWARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fast_form_equals_the_reference_bit_for_bit(dtype: torch.dtype, columns: int) -> None:
    x = sample(41, columns)
    x[3] = 0
    codes, scales = rowwise.quantize(x, dtype)
    grid, fast = rowwise.split(x, dtype)
    assert torch.equal(grid, codes.float())
    assert torch.equal(fast, scales)


@pytest.mark.parametrize("columns", AWKWARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_stay_within_half_a_step(dtype: torch.dtype, columns: int) -> None:
    x = sample(33, columns)
    x[4] = 0
    back = rowwise.dequantize(*rowwise.quantize(x, dtype))
    peak = x.abs().amax(1, keepdim=True)
    step = peak / 127 / 2 if dtype is torch.int8 else x.abs() / 16 + peak / 448 * 2**-10
    assert ((back - x).abs() <= step * 1.0001).all()
    assert not back[4].any()


def test_int8_rounds_half_to_even_and_never_uses_minus_128() -> None:
    codes, _ = rowwise.quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -127.0]]), torch.int8)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -127]]


@given(st.floats(0, 2.0**127, width=32), st.sampled_from(DTYPES))
def test_any_row_comes_back_as_numbers_within_a_step(size: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[size, -size / 3, 0.0, size / 7]])
    back = rowwise.dequantize(*rowwise.quantize(x, dtype))
    assert torch.isfinite(back).all()
    assert ((back - x).abs() <= max(size, rowwise.TINY) / 14).all()
    if size == 0:
        assert not back.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_poisons_only_its_own_row(dtype: torch.dtype) -> None:
    x = sample(4, 32)
    clean = rowwise.dequantize(*rowwise.quantize(x, dtype))
    x[2, 5] = float("nan")
    poisoned = rowwise.dequantize(*rowwise.quantize(x, dtype))
    rows = torch.tensor([0, 1, 3])
    assert torch.equal(poisoned[rows], clean[rows])
    assert poisoned[2].isnan().all()
