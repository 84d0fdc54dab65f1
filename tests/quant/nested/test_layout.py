"""BF16 in twelve bits: every bit comes back, the codes are a good FP8 twin, and the kernel's arithmetic reads them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.quant.nested import layout
from mixquant_agents.quant.nested.layout import ORDER, nest, ordered, rebuild
from mixquant_agents.quant.numerics import rowwise


def bits_of(weight: torch.Tensor) -> torch.Tensor:
    return weight.view(torch.int16).int() & 0xFFFF


def from_bits(bits: torch.Tensor) -> torch.Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)


def unpacked_as_by_the_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Bits int32 ``[N, K]`` with the words, masks and shifts of ``kernel.cu``, the rows' offsets added again."""
    nested = nest(weight)
    n, k = weight.shape
    words = nested.codes.view(torch.uint8).numpy().view(np.uint32).reshape(n // 16, 2, 8, k // 64, 4, 4)  # h g a t s
    low = nested.low.numpy().view(np.uint32).reshape(n // 16, k // 64, 8, 4, 4)  # a g t s
    low = low.transpose(0, 2, 1, 3, 4)
    out = np.empty((n // 16, 2, 8, k // 64, 4, 4, 4), np.uint32)  # …, four inputs of a word
    for h in range(2):
        code, nibbles = words[:, h], low >> (8 * h)
        even = ((code << 4) & 0x07F007F0) + (nibbles & 0x000F000F) - 0x00080008 | (code << 8) & 0x80008000
        odd = ((code & 0x7F007F00) + (nibbles & 0x00F000F0) - 0x00800080) >> 4 | code & 0x80008000
        for i, half in enumerate((even & 0xFFFF, odd & 0xFFFF, even >> 16, odd >> 16)):
            out[:, h, ..., i] = half
    stored = torch.from_numpy(out.reshape(n, k // 64, 64).astype(np.int64))
    natural = torch.empty_like(stored)
    natural[..., list(ORDER)] = stored
    natural = natural.reshape(n, k)
    magnitude = natural & 0x7FFF
    return (torch.where(magnitude == 0, 0, magnitude + (nested.offsets.long()[:, None] << 7)) | natural & 0x8000).int()


@pytest.mark.parametrize("top", [0, 1, 13, 14, 15, 100, 127, 240, 253, 254])
def test_every_bit_pattern_comes_back_at_channel_exponent(top: int) -> None:
    patterns = from_bits(torch.arange(65536).view(16, 4096))
    exponents = (bits_of(patterns) & 0x7FFF) >> 7
    weight = from_bits(torch.where((exponents > top) & (exponents < 255), 0, bits_of(patterns)))
    weight[:, 0] = from_bits(torch.full((16,), (top << 7) | 5))
    assert torch.equal(bits_of(rebuild(nest(weight))), bits_of(weight))


@given(st.integers(0, 2**32 - 1), st.integers(-120, 100), st.sampled_from([(16, 64), (16, 128), (48, 576)]))
def test_weights_come_back_whatever_they_are(seed: int, exponent: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    ordinary = (torch.randn(shape, generator=generator) * 2.0**exponent).bfloat16()
    any_bits = from_bits(torch.randint(0, 65536, shape, generator=generator))
    weight = torch.where(torch.rand(shape, generator=generator) < 0.05, any_bits, ordinary)
    assert torch.equal(bits_of(rebuild(nest(weight))), bits_of(weight))


def test_kernel_arithmetic_reads_all_but_escapes() -> None:
    weight = (torch.randn(32, 256, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    weight[3, 5], weight[4, 6] = 0.0, -0.0
    nested = nest(weight)
    same = unpacked_as_by_the_kernel(weight) == bits_of(weight)
    assert (~same).sum() <= nested.escapes.shape[0] < 10
    # Where an escape lies the kernel reads zero, and adds it afterwards.
    assert (unpacked_as_by_the_kernel(weight)[~same] & 0x7FFF == 0).all()


def test_codes_are_as_good_an_fp8_twin_as_those_with_a_free_scale() -> None:
    weight = (torch.randn(256, 1024, generator=torch.Generator().manual_seed(2)) * 0.02).bfloat16()
    nested = nest(weight)
    twin = nested.codes.float() * nested.twin_scales()
    expected = ordered(weight.float())

    def error(approximation: torch.Tensor, exact: torch.Tensor) -> float:
        return float((approximation - exact).norm() / exact.norm())

    codes, scales = rowwise.quantize(weight, torch.float8_e4m3fn)
    free = error(codes.float() * scales, weight.float())
    assert error(twin, expected) < 1.02 * free


def test_order_puts_the_inputs_of_a_thread_together() -> None:
    columns = torch.arange(128)[None]
    assert tuple(ordered(columns)[0, :64].tolist()) == ORDER
    assert sorted(ORDER) == list(range(64))
    assert torch.equal(ordered(columns)[0, 64:], ordered(columns)[0, :64] + 64)


def test_bytes_are_three_quarters() -> None:
    weight = (torch.randn(256, 1024, generator=torch.Generator().manual_seed(3)) * 0.02).bfloat16()
    assert nest(weight).nbytes / (2 * weight.numel()) < 0.76


def test_slices_of_rows_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = (torch.randn(80, 384, generator=torch.Generator().manual_seed(4)) * 0.02).bfloat16()
    weight[17, 3] = 1e-30
    whole = nest(weight)
    monkeypatch.setattr(layout, "SLICE", 32 * 384)
    sliced = nest(weight)
    for name in ("codes", "low", "offsets", "first", "escapes"):
        assert torch.equal(getattr(whole, name).view(torch.uint8), getattr(sliced, name).view(torch.uint8)), name


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(16, 128), "float32"),
        (torch.zeros(16, 100, dtype=torch.bfloat16), "16 x 100"),
        (torch.zeros(15, 128, dtype=torch.bfloat16), "15 x 128"),
        (torch.zeros(128, dtype=torch.bfloat16), "shape"),
    ],
)
def test_refusal_names_dtype_or_shape(weight: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nest(weight)
