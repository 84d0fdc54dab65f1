"""Rows in NVFP4 as vLLM's products read them: the reference's numbers, in vLLM's own layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm._custom_ops import create_fp4_output_tensors
from vllm.model_executor.layers.quantization.utils.nvfp4_utils import (
    pad_nvfp4_activation_for_cutlass,
    swizzle_blockscale,
)

from mixquant_agents.quant.numerics import nvfp4
from mixquant_agents.quant.ops.nvfp4_torch import quantize_rows, swizzled

ONE = torch.ones(())


def rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-6, 4, m)[:, None]
    return x.bfloat16()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM puts scales on the GPU while it swizzles them."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("m", "count"), [(1, 1), (127, 3), (128, 4), (129, 5), (300, 16)])
def test_scales_lie_as_vllm_swizzles_them(m: int, count: int) -> None:
    scales = torch.randn(m, count, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    assert torch.equal(swizzled(scales).view(torch.uint8), swizzle_blockscale(scales).view(torch.uint8))


@pytest.mark.parametrize("four_over_six", [False, True])
@pytest.mark.parametrize("padded", [None, 64, 160])
def test_shapes_are_vllms_and_padding_is_zero(padded: int | None, four_over_six: bool) -> None:
    x = rows(5, 48)
    codes, scales = quantize_rows(x, ONE, four_over_six, padded_columns=padded)
    own_codes, own_scales = create_fp4_output_tensors(5, 48, x.device, True, padded)
    assert (codes.shape, codes.dtype) == (own_codes.shape, own_codes.dtype)
    assert scales.shape == own_scales.view(torch.float8_e4m3fn).shape
    assert scales.dtype == torch.float8_e4m3fn
    expected = nvfp4.quantize(x, ONE, four_over_six)
    missing = 0 if padded is None else (padded - 48) // 2
    assert torch.equal(codes, pad_nvfp4_activation_for_cutlass(expected.packed, missing))
    lying = torch.nn.functional.pad(expected.scales.view(torch.uint8), (0, missing // 8)).view(torch.float8_e4m3fn)
    assert torch.equal(scales.view(torch.uint8), swizzled(lying).view(torch.uint8))
    assert int((scales.view(torch.uint8) != 0).sum()) == int((expected.scales.float() != 0).sum())


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=16, max_size=16),
    st.integers(-20, 20),
    st.booleans(),
)
def test_numbers_are_the_references(
    m: int, count: int, values: list[float], exponent: int, four_over_six: bool
) -> None:
    x = torch.tensor(values).repeat(m, count).mul_(torch.arange(1, 16 * count + 1)).bfloat16()
    channels = torch.exp2(torch.arange(16 * count) % 5 - 2.0)
    encode = torch.tensor(2.0**exponent)
    codes, scales = quantize_rows(x, encode, four_over_six, channels)
    chosen_values, chosen = nvfp4.round_values(x * channels.bfloat16(), encode, four_over_six)
    back = nvfp4.Nvfp4Tensor(codes, chosen.squeeze(-1), encode, 16 * count)
    expected = (chosen_values * (chosen.float() / encode)).flatten(1)
    assert torch.equal(nvfp4.dequantize(back), expected)
    tiles = scales.view(torch.uint8).reshape(-1, scales.shape[1] // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    assert torch.equal(tiles.reshape(scales.shape)[:m, :count], chosen.squeeze(-1).view(torch.uint8))
