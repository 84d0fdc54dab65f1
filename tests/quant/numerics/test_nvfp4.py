"""The plain reference of NVFP4, against vLLM's and compressed-tensors' own, and against first principles."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from vllm.model_executor.layers.quantization.utils import nvfp4_emulation_utils as vllm_nvfp4

from mixquant_agents.quant.numerics import e2m1, nvfp4

AWKWARD = (1, 15, 16, 17, 63, 1000)
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
ONE = torch.tensor(1.0)


def sample(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different magnitudes, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return x * torch.logspace(-6, 4, rows).unsqueeze(1)


def scale_of(name: str, x: torch.Tensor) -> torch.Tensor:
    static = torch.tensor(nvfp4.static_global_scale(float(x.abs().max())))
    return {"one": ONE, "tensor": nvfp4.tensor_global_scale(x), "static": static}[name]


def test_e2m1_rounds_to_the_nearest_value_and_ties_to_the_even_code() -> None:
    ties = (E2M1[1:] + E2M1[:-1]) / 2
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(e2m1.round_e2m1(ties), even)
    assert torch.equal(e2m1.round_e2m1(-ties), -even)
    below, above = torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(9.0))
    assert torch.equal(e2m1.round_e2m1(below), E2M1[:-1])
    assert torch.equal(e2m1.round_e2m1(above), E2M1[1:])
    assert torch.equal(e2m1.round_e2m1(E2M1), E2M1)
    assert torch.equal(e2m1.round_e2m1(torch.tensor([7.0, -1e30])), torch.tensor([6.0, -6.0]))


def test_e2m1_agrees_with_vllm_on_a_dense_grid() -> None:
    x = torch.linspace(-8, 8, 64_001)
    expected = vllm_nvfp4.cast_to_fp4(x.clamp(-6, 6).clone())
    assert torch.equal(e2m1.round_e2m1(x), expected)


@pytest.mark.parametrize("columns", [16, 64, 1008])
@pytest.mark.parametrize("scale", ["one", "tensor", "static"])
def test_nvfp4_agrees_with_vllm_bit_for_bit(columns: int, scale: str) -> None:
    x = sample(37, columns)
    global_scale = scale_of(scale, x)
    values, scales = vllm_nvfp4.ref_nvfp4_quant(x.clone(), global_scale, 16)
    ours = nvfp4.quantize(x, global_scale)
    assert torch.equal(e2m1.unpack(ours.packed), values)
    assert torch.equal(ours.scales.float(), scales)
    assert torch.equal(nvfp4.dequantize(ours), vllm_nvfp4.ref_nvfp4_quant_dequant(x.clone(), global_scale, 16))


def test_nvfp4_agrees_with_vllm_on_ties_zeros_and_subnormal_scales() -> None:
    ties = torch.cat([(E2M1[1:] + E2M1[:-1]) / 2, E2M1, torch.tensor([6.0])])
    rows = [ties, -ties, torch.zeros(16), ties * 2**-9, ties * 2**-10, ties * 2**-12, ties * 300.0, ties * 1e6]
    x = torch.stack(rows)
    values, scales = vllm_nvfp4.ref_nvfp4_quant(x.clone(), ONE, 16)
    ours = nvfp4.quantize(x, ONE)
    assert torch.equal(e2m1.unpack(ours.packed), values)
    assert torch.equal(ours.scales.float(), scales)
    assert scales[3, 0] == 2**-9, "the smallest subnormal of E4M3 must be among the cases"
    assert scales[5, 0] == 0
    assert not values[5].any()
    assert scales[-1, 0] == 448


def test_packing_order_is_that_of_compressed_tensors_and_vllm() -> None:
    values = torch.cat([E2M1, -E2M1]).repeat(3, 1)[:, torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    packed = e2m1.pack(values)
    assert torch.equal(packed, pack_fp4_to_uint8(values))
    assert torch.equal(e2m1.unpack(packed), values)
    assert torch.equal(e2m1.unpack(packed), unpack_fp4_from_uint8(packed, 3, 16, torch.float32))
    assert torch.equal(e2m1.unpack(packed), vllm_nvfp4.break_fp4_bytes(packed, torch.float32))
    assert e2m1.pack(torch.tensor([[0.5, -6.0]])).item() == 0xF1, "the lower column belongs in the low nibble"


@pytest.mark.parametrize("columns", AWKWARD)
@pytest.mark.parametrize("rows", AWKWARD[:-1])
@pytest.mark.parametrize("scale", ["tensor", "static"])
def test_nvfp4_error_is_within_half_a_step(rows: int, columns: int, scale: str) -> None:
    x = sample(rows, columns) if scale == "tensor" else sample(1, columns).repeat(rows, 1)
    q = nvfp4.quantize(x, scale_of(scale, x))
    assert q.packed.shape == (rows, -(-columns // 16) * 8)
    assert q.scales.shape == (rows, -(-columns // 16))
    back = nvfp4.dequantize(q)
    assert back.shape == x.shape
    if scale == "static":
        # Half of E2M1's widest step (2 of 6) of the block's largest magnitude, and the scale's own half step of 1/16.
        peak = e2m1.blocks(x, 16).abs().amax(-1).repeat_interleave(16, dim=1)[:, :columns]
        assert ((back - x).abs() <= peak * (1 / 6 + 1 / 16)).all()


def test_ragged_last_block_is_quantized_as_if_padded_with_zeros() -> None:
    x = sample(5, 63)
    padded = torch.nn.functional.pad(x, (0, 1))
    scale = nvfp4.tensor_global_scale(x)
    assert torch.equal(
        nvfp4.dequantize(nvfp4.quantize(x, scale)), nvfp4.dequantize(nvfp4.quantize(padded, scale))[:, :63]
    )


@pytest.mark.parametrize("peak", [1e-30, 2e-4, 0.006, 0.09, 1.0, 700.0, 2688.0, 1e6])
def test_static_scale_is_the_power_of_two_that_leaves_the_margin(peak: float) -> None:
    scale = nvfp4.static_global_scale(peak)
    assert math.frexp(scale)[0] == 0.5
    if 2.0**-60 < scale < 2.0**60:
        assert 1344 < scale * peak * nvfp4.ACTIVATION_MARGIN <= 2688


@pytest.mark.parametrize("peak", [0.0, math.inf, math.nan])
def test_static_scale_of_nothing_is_one(peak: float) -> None:
    assert nvfp4.static_global_scale(peak) == 1


@pytest.mark.parametrize("four_over_six", [False, True])
@pytest.mark.parametrize("size", [3e-9, 1e-4, 0.005, 0.08, 1.0, 900.0, 1e5])
@pytest.mark.parametrize("exponent", [-4, 0, 3, 12])
def test_fast_rounding_equals_the_plain_one_bit_for_bit(size: float, exponent: int, four_over_six: bool) -> None:
    x = torch.randn(24, 80, generator=torch.Generator().manual_seed(5)) * size
    x[3], x[4, ::2] = 0, torch.tensor(size * 1e-3)
    scale = torch.tensor(2.0**exponent)
    grid, decode = nvfp4.split_scaled(x, scale, four_over_six)
    assert torch.equal(grid * decode, nvfp4.dequantize(nvfp4.quantize(x, scale, four_over_six)))


def test_four_over_six_never_loses_and_mostly_gains() -> None:
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    scale = nvfp4.tensor_global_scale(w, four_over_six=True)
    losses = []
    for chosen in (False, True):
        back = nvfp4.dequantize(nvfp4.quantize(w, scale, chosen))
        losses.append(e2m1.blocks((back - w).square(), 16).sum(-1))
    assert (losses[1] <= losses[0]).all()
    assert (losses[1] < losses[0]).float().mean() > 0.2


def test_static_scale_saves_blocks_that_a_scale_of_one_loses() -> None:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(7)) * 1e-3
    lost = nvfp4.dequantize(nvfp4.quantize(x, ONE))
    kept = nvfp4.dequantize(nvfp4.quantize(x, scale_of("static", x)))
    assert (lost - x).norm() / x.norm() > 0.3
    assert (kept - x).norm() / x.norm() < 0.12


def test_static_scale_rounds_like_a_global_scale_of_one_wherever_that_is_in_range() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3)) * 8
    one, static = (nvfp4.dequantize(nvfp4.quantize(x, s)) for s in (ONE, scale_of("static", x)))
    assert torch.equal(one, static)
