"""The plain reference of NVFP4, against vLLM's and compressed-tensors' own, and against first principles."""

from __future__ import annotations

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
    return {"one": ONE, "tensor": nvfp4.tensor_global_scale(x), "row": nvfp4.row_global_scale(x)}[name]


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
@pytest.mark.parametrize("scale", ["one", "tensor"])
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
@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_nvfp4_error_is_within_half_a_step(rows: int, columns: int, scale: str) -> None:
    x = sample(rows, columns)
    q = nvfp4.quantize(x, scale_of(scale, x))
    assert q.packed.shape == (rows, -(-columns // 16) * 8)
    assert q.scales.shape == (rows, -(-columns // 16))
    back = nvfp4.dequantize(q)
    assert back.shape == x.shape
    if scale == "row":
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


def test_row_scales_are_powers_of_two_that_fill_the_range() -> None:
    x = sample(200, 48)
    x[7] = 0
    x[8, :] = 2688.0
    scale = nvfp4.row_global_scale(x)
    peak = x.abs().amax(1, keepdim=True) * scale
    mantissa, _ = torch.frexp(scale)
    assert (mantissa == 0.5).all()
    assert scale[7] == 1
    assert scale[8] == 1
    filled = peak[peak > 0]
    assert (filled <= 2688).all()
    assert (filled > 1344).all()


def test_row_scale_rounds_like_a_global_scale_of_one_wherever_that_is_in_range() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3)) * 8
    one, row = (nvfp4.dequantize(nvfp4.quantize(x, s)) for s in (ONE, nvfp4.row_global_scale(x)))
    assert torch.equal(one, row)
