"""The Triton kernels against their plain references."""

from __future__ import annotations

import types

import pytest
import torch

from mixquant_agents.quant.ops import rowwise_torch as reference

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 16), (15, 48), (17, 576), (63, 1000), (5, 1536)]
FORMATS = [torch.float8_e4m3fn, torch.int8] if DEVICE == "cuda" else [torch.int8]
SOME = FORMATS[0]
RTOL = 0.0 if DEVICE == "cuda" else 1e-6
ROUNDING = 0.0 if DEVICE == "cuda" else 2**-7  # the interpreter truncates to bfloat16


def rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.logspace(-4, 4, m)[:, None]
    x[0, k // 2] = 0.0
    if m > 1:
        x[1] = 0.0  # a row of zeros
    if m > 2:
        x[2] = x[2].sign() * 0.5  # only ties at the maximum
    return x.to(torch.bfloat16).to(DEVICE)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit on a GPU; the interpreter divides in float64, so one step in a hundred codes is allowed there."""
    apart = (a.view(torch.int8).int() - b.view(torch.int8).int()).abs()
    if DEVICE == "cuda":
        return bool((apart == 0).all())
    return bool((apart <= 1).all()) and float((apart > 0).float().mean()) <= 0.01


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("m", "k"), SIZES)
def test_quantize_rows(kernels: types.ModuleType, m: int, k: int, dtype: torch.dtype) -> None:
    x = rows(m, k)
    codes, scales = kernels.quantize_rows(x, dtype)
    want_codes, want_scales = reference.quantize_rows(x, dtype)
    assert torch.allclose(scales, want_scales, rtol=RTOL, atol=0)
    assert same(codes, want_codes)
    assert torch.isfinite(codes.float()).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(("m", "k"), SIZES)
def test_norm_quantize_rows(kernels: types.ModuleType, m: int, k: int, with_residual: bool, dtype: torch.dtype) -> None:
    x, residual = rows(m, k), rows(m, k, seed=1) if with_residual else None
    gamma = torch.rand(k).add(0.5).to(torch.bfloat16).to(DEVICE)
    want, want_total = reference.norm_rows(x, residual, gamma, 1e-6)
    codes, scales, total = kernels.norm_quantize_rows(x, residual, gamma, 1e-6, dtype)
    exact, exact_total = kernels.norm_rows(x, residual, gamma, 1e-6)
    if want_total is not None:
        assert total is not None
        assert exact_total is not None
        assert torch.allclose(total.float(), want_total.float(), rtol=ROUNDING, atol=0)
        assert torch.equal(exact_total, total)
    # the fused form is the two-step form on the kernel's own rows, bit for bit
    again_codes, again_scales = reference.quantize_rows(exact, dtype)
    assert torch.allclose(scales, again_scales, rtol=RTOL, atol=0)
    assert same(codes, again_codes)
    assert torch.allclose(exact.float(), want.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("m", "k"), SIZES)
def test_silu_quantize_rows(kernels: types.ModuleType, m: int, k: int, dtype: torch.dtype) -> None:
    x = rows(m, 2 * k)
    want = reference.silu_rows(x)
    codes, scales = kernels.silu_quantize_rows(x, dtype)
    exact = kernels.silu_rows(x)
    again_codes, again_scales = reference.quantize_rows(exact, dtype)
    assert torch.allclose(scales, again_scales, rtol=RTOL, atol=0)
    assert same(codes, again_codes)
    assert torch.allclose(exact.float(), want.float(), rtol=2**-7, atol=1e-6)


def test_slot_holds_the_named_rows_unquantized(kernels: types.ModuleType) -> None:
    m, k = 17, 576
    x, residual = rows(m, k), rows(m, k, seed=1)
    gamma = torch.rand(k).add(0.5).to(torch.bfloat16).to(DEVICE)
    index = torch.tensor([3, -1, 16, 0], dtype=torch.int32, device=DEVICE)
    used = index >= 0

    def poisoned() -> torch.Tensor:
        return torch.full((4, k), float("nan"), dtype=torch.bfloat16, device=DEVICE)

    slot = poisoned()
    kernels.quantize_rows(x, SOME, index, slot)
    assert torch.equal(slot[used], x[index[used].long()])
    assert slot[~used].isnan().all()  # an unused place is left alone

    slot = poisoned()
    kernels.norm_quantize_rows(x, residual, gamma, 1e-6, SOME, index, slot)
    assert torch.equal(slot[used], kernels.norm_rows(x, residual, gamma, 1e-6)[0][index[used].long()])

    wide = rows(m, 2 * k)
    slot = poisoned()
    kernels.silu_quantize_rows(wide, SOME, index, slot)
    assert torch.equal(slot[used], kernels.silu_rows(wide)[index[used].long()])


@pytest.mark.parametrize("k", [576, 1536, 12288])
def test_scaled_channels_are_rows_times_powers_of_two(kernels: types.ModuleType, k: int) -> None:
    m = 37
    x, residual, wide = rows(m, k), rows(m, k, seed=1), rows(m, 2 * k)
    gamma = torch.rand(k).add(0.5).to(torch.bfloat16).to(DEVICE)
    scale = torch.exp2(torch.randint(-6, 7, (k,)).float()).to(DEVICE)
    index = torch.tensor([3, -1, 36, 0], dtype=torch.int32, device=DEVICE)
    used = index >= 0
    for made in (
        lambda *own: kernels.norm_rows(x, None, gamma, 1e-6, *own)[0],
        lambda *own: kernels.norm_rows(x, residual, gamma, 1e-6, *own)[0],
        lambda *own: kernels.silu_rows(wide, *own),
    ):
        slot = torch.full((4, k), float("nan"), dtype=torch.bfloat16, device=DEVICE)
        expected = made()
        assert torch.equal(made(scale, index, slot), expected * scale.to(torch.bfloat16))
        assert torch.equal(slot[used], expected[index[used].long()])
        assert slot[~used].isnan().all()


def test_scatter_rows_writes_only_named_rows(kernels: types.ModuleType) -> None:
    out = torch.zeros(17, 1000, dtype=torch.bfloat16, device=DEVICE)
    source = rows(4, 1000)
    index = torch.tensor([3, -1, 16, 0], dtype=torch.int32, device=DEVICE)
    kernels.scatter_rows(source, index, out)
    want = torch.zeros_like(out)
    for place, row in enumerate(index.tolist()):
        if row >= 0:
            want[row] = source[place]
    assert torch.equal(out, want)


def test_strided_input(kernels: types.ModuleType) -> None:
    x = rows(9, 128)[:, :96]
    codes, scales = kernels.quantize_rows(x, SOME)
    want_codes, want_scales = reference.quantize_rows(x.contiguous(), SOME)
    assert torch.allclose(scales, want_scales, rtol=RTOL, atol=0)
    assert same(codes, want_codes)
