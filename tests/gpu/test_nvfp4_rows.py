"""The Triton kernel that quantizes rows to NVFP4 against the reference, bit for bit."""

from __future__ import annotations

import importlib
import types

import pytest
import torch

from mixquant_agents.quant.ops import nvfp4_torch
from mixquant_agents.quant.ops.sources import ExactRows, PlainRows, RowSource, SiluRows
from mixquant_agents.quant.timing import capture

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 16), (37, 48), (128, 64), (129, 1040), (300, 4096)]
E2M1 = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 5.5, 6.0)
"""Values of E2M1 and what lies halfway between them."""


@pytest.fixture(scope="session")
def quantize(kernels: types.ModuleType) -> types.ModuleType:
    """The kernel's module; ``kernels`` has set Triton up."""
    return importlib.import_module("mixquant_agents.quant.ops.nvfp4_triton")


def ordinary(m: int, k: int) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(m + k))


def mixed(m: int, k: int) -> torch.Tensor:
    """Rows and channels of very different size, with rows, blocks and values of zero of either sign."""
    x = ordinary(m, k) * torch.logspace(-7, 4, m)[:, None] * torch.logspace(-2, 2, k)[None, :]
    x[m // 2] = 0.0
    x[:, :16] *= 0.0
    x[:, k // 2] = -0.0
    return x


def ties(m: int, k: int) -> torch.Tensor:
    """Values halfway between two of E2M1 in blocks of every power of two, and errors that are equal for 4 and 6."""
    x = torch.tensor(E2M1).repeat(m, k // 16)
    signs = ordinary(m, k).sign()
    return x * signs * torch.exp2(torch.arange(m) % 24 - 14.0)[:, None]


KINDS = {
    "ordinary": ordinary,
    "tiny": lambda m, k: ordinary(m, k) * 1.5e-3,
    "underflowing": lambda m, k: ordinary(m, k) * 2e-5,
    "huge": lambda m, k: ordinary(m, k) * 9e3,
    "zero": lambda m, k: torch.zeros(m, k),
    "mixed": mixed,
    "ties": ties,
}


def same(got: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor]) -> None:
    for mine, reference in zip(got, want, strict=True):
        assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype)
        apart = mine.view(torch.uint8).cpu() != reference.view(torch.uint8).cpu()
        assert not apart.any(), f"{int(apart.sum())} of {apart.numel()} bytes differ"


@pytest.mark.parametrize("four_over_six", [False, True], ids=["max", "4/6"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "k"), SIZES)
def test_rows_equal_the_reference_bit_for_bit(
    quantize: types.ModuleType, m: int, k: int, kind: str, dtype: torch.dtype, four_over_six: bool
) -> None:
    x = KINDS[kind](m, k).clamp(-6e4, 6e4).to(dtype)
    for exponent in (0, -9, 7):
        encode = torch.tensor(2.0**exponent)
        got = quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), four_over_six)
        same(got, nvfp4_torch.quantize_rows(x, encode, four_over_six))


def test_reference_is_the_same_on_the_device() -> None:
    x, encode = mixed(129, 1040).bfloat16(), torch.tensor(2.0)
    same(nvfp4_torch.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True), nvfp4_torch.quantize_rows(x, encode, True))


def test_near_ties_of_4_and_6_are_decided_as_by_the_reference(quantize: types.ModuleType) -> None:
    """Of few different values, so that both errors are often equal or nearly so."""
    x = ordinary(256, 2048).mul(2).round().mul(0.5).bfloat16()
    encode = torch.tensor(1.0)
    wanted = nvfp4_torch.quantize_rows(x, encode, True)
    same(quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True), wanted)
    plain = nvfp4_torch.quantize_rows(x, encode, False)[1].view(torch.uint8)
    assert 0.05 < float((plain != wanted[1].view(torch.uint8)).float().mean()) < 0.95, "both must be among them"


@pytest.mark.parametrize("exponent", [-60, 60])
def test_outermost_global_scales(quantize: types.ModuleType, exponent: int) -> None:
    x = (ordinary(40, 96) * 2.0**-exponent).bfloat16()
    encode = torch.tensor(2.0**exponent)
    got = quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True)
    same(got, nvfp4_torch.quantize_rows(x, encode, True))


@pytest.mark.parametrize("padded", [96, 128, 320])
def test_padding_is_zero_in_dirty_memory(quantize: types.ModuleType, padded: int) -> None:
    x, encode = mixed(130, 80).bfloat16(), torch.tensor(1.0)
    dirty = [torch.full((1 << 16,), 0xAB, dtype=torch.uint8, device=DEVICE) for _ in range(4)]
    del dirty
    got = quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True, None, padded)
    same(got, nvfp4_torch.quantize_rows(x, encode, True, None, padded))


def test_rows_of_a_wider_tensor(quantize: types.ModuleType) -> None:
    wide, encode = mixed(70, 512).bfloat16(), torch.tensor(1.0)
    got = quantize.quantize_rows(wide.to(DEVICE)[:, 64:160], encode.to(DEVICE), True)
    same(got, nvfp4_torch.quantize_rows(wide[:, 64:160], encode, True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_channels_are_scaled_on_the_way(quantize: types.ModuleType, dtype: torch.dtype) -> None:
    x, encode = ordinary(150, 336).to(dtype), torch.tensor(0.5)
    channels = torch.exp2(torch.randint(-6, 7, (336,), generator=torch.Generator().manual_seed(2)).float())
    got = quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True, channels.to(DEVICE))
    same(got, nvfp4_torch.quantize_rows(x * channels.to(dtype), encode, True))


def test_value_that_is_no_number_makes_its_block_none(quantize: types.ModuleType) -> None:
    x, encode = ordinary(3, 64).bfloat16(), torch.tensor(1.0)
    x[1, 20], x[2, 40] = float("nan"), float("inf")
    _, scales = quantize.quantize_rows(x.to(DEVICE), encode.to(DEVICE), True)
    _, wanted = nvfp4_torch.quantize_rows(x, encode, True)
    assert torch.equal(scales.float().isnan().cpu(), wanted.float().isnan())
    assert int(scales.float().isnan().sum()) == 1
    assert torch.equal(scales.float().nan_to_num(-1).cpu(), wanted.float().nan_to_num(-1))


def test_no_rows(quantize: types.ModuleType) -> None:
    x = torch.empty(0, 64, dtype=torch.bfloat16, device=DEVICE)
    codes, scales = quantize.quantize_rows(x, torch.ones((), device=DEVICE), True)
    assert codes.shape == (0, 32)
    assert scales.shape == (0, 4)


@pytest.mark.parametrize("source_of", [PlainRows, SiluRows])
def test_captured_rows_replay_with_other_values_and_another_global_scale(
    quantize: types.ModuleType, source_of: type[RowSource]
) -> None:
    first, second = (mixed(200, 1024).roll(shift, 0).bfloat16().cuda() for shift in (0, 7))
    encode, index = torch.tensor(1.0, device="cuda"), torch.tensor([3, -1], dtype=torch.int32, device="cuda")
    x = first.clone()
    columns = source_of(x).rows().shape[1]
    kept = torch.zeros(2, columns, dtype=torch.bfloat16, device="cuda")
    channels = torch.exp2(torch.arange(columns, device="cuda") % 5 - 2.0)
    graph, out = capture(lambda: source_of(x).four_over_six(encode, ExactRows(index, kept), channels))
    x.copy_(second)
    encode.fill_(8.0)
    graph.replay()
    torch.cuda.synchronize()
    rows = source_of(second).rows()
    same(out, nvfp4_torch.quantize_rows((rows * channels.bfloat16()).cpu(), torch.tensor(8.0), True))
    assert torch.equal(kept[0], rows[3])
