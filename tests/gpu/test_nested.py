"""The product with nested weights, against float64 and bit for bit where tokens pick single weights."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.quant.nested.kernels import compile_tilings, nested_linear
from mixquant_agents.quant.nested.layout import NestedWeight, natural, nest, ordered
from mixquant_agents.quant.nested.product import (
    NestedProduct,
    Scratch,
    TwinProduct,
    exact_weight,
    first_plan,
    measure,
    measure_twin,
)
from mixquant_agents.quant.nested.tiling import CUTS, MAX_ROWS, AnyTiling, StagedTiling

pytestmark = pytest.mark.gpu

N, K = 768, 2048
TILINGS = [tiling for cuts in CUTS.values() for tiling in cuts if tiling.fits(N, K)]


def wild_weight() -> torch.Tensor:
    """Rows of very different size, one weight in fifty of any finite bits, a row of zeros and one of bit patterns."""
    patterns = torch.arange(65536, device="cuda", dtype=torch.int32)
    finite = patterns[(patterns & 0x7F80) != 0x7F80].to(torch.int16).view(torch.bfloat16)
    scales = 2.0 ** torch.randint(-60, 60, (N, 1), device="cuda")
    weight = (torch.randn(N, K, device="cuda") * scales).bfloat16()
    drawn = finite[torch.randint(0, finite.numel(), (N, K), device="cuda")]
    weight = torch.where(torch.rand(N, K, device="cuda") < 0.02, drawn, weight)
    weight[3], weight[5] = finite[:K], 0.0
    return weight


@pytest.fixture(scope="module")
def nested() -> tuple[torch.Tensor, NestedWeight]:
    torch.manual_seed(0)
    compile_tilings(TILINGS)
    weight = (torch.randn(N, K, device="cuda") * 0.02).bfloat16()
    weight[torch.rand(N, K, device="cuda") < 0.01] *= 2.0**-20
    return weight, nest(weight)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.usefixtures("nested")
def test_one_hot_tokens_give_weights_back_bit_for_bit(tiling: AnyTiling) -> None:
    torch.manual_seed(1)
    weight = wild_weight()
    nested = nest(weight)
    tokens = 8 * tiling.nt
    for first in range(0, K, tokens):
        x = torch.zeros(tokens, K, device="cuda", dtype=torch.bfloat16)
        x[torch.arange(tokens), first + torch.arange(tokens)] = 1
        assert torch.equal(nested_linear(x, nested, tiling).T, weight[:, first : first + tokens])


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_product_is_float32_rounded_once(tiling: AnyTiling, nested: tuple[torch.Tensor, NestedWeight]) -> None:
    weight, held = nested
    bias = torch.randn(N, device="cuda").bfloat16()
    for rows in {1, 3, 4 * tiling.nt + 1, 8 * tiling.nt - 1, 8 * tiling.nt}:
        x = torch.randn(rows, K, device="cuda").bfloat16()
        y = nested_linear(x, held, tiling, bias)
        expected = x.double() @ weight.double().T + bias.double()
        assert (y.double() - expected).norm() / expected.norm() < 2.5e-3
        assert torch.equal(y, nested_linear(x, held, tiling, bias))


@pytest.mark.parametrize("tiling", [tiling for tiling in TILINGS if isinstance(tiling, StagedTiling)], ids=str)
def test_stages_in_turns_are_never_read_too_early(tiling: StagedTiling) -> None:
    """Many steps, all multiprocessors busy: a warp that takes a stage for one a turn ahead would change some sum."""
    torch.manual_seed(5)
    weight = (torch.randn(6144, 8192, device="cuda") * 0.02).bfloat16()
    held = nest(weight)
    x = torch.randn(64, 8192, device="cuda").bfloat16()
    y = nested_linear(x, held, tiling)
    for _ in range(50):
        assert torch.equal(nested_linear(x, held, tiling), y)
    for first in range(0, 8192, 2048):
        x = torch.zeros(64, 8192, device="cuda", dtype=torch.bfloat16)
        x[torch.arange(64), first + 17 * torch.arange(64)] = 1
        assert torch.equal(nested_linear(x, held, tiling).T, weight[:, first : first + 17 * 64 : 17])


@pytest.mark.parametrize("shape", [(960, 576), (576, 576), (3072, 576), (576, 1536), (48, 192)])
def test_every_number_of_rows_has_a_product_in_shapes_of_a_small_model(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    weight = (torch.randn(shape, device="cuda") * 0.02).bfloat16()
    product = NestedProduct(nest(weight), first_plan(*shape, torch.cuda.get_device_capability()), Scratch())
    bias = torch.randn(shape[0], device="cuda").bfloat16()
    for rows in (0, 1, 9, 17, 33, 64, 65, 200, 600):
        x = torch.randn(rows, shape[1], device="cuda").bfloat16()
        expected = x.double() @ weight.double().T + bias.double()
        for y in (product(x, bias), product.unpacked(x, bias)):
            assert y.shape == expected.shape
            assert (y.double() - expected).norm() <= 3e-3 * expected.norm()


@pytest.mark.parametrize("shape", [(N, K), (960, 576)])
def test_draft_product_is_that_of_the_twin_with_unquantized_rows(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    weight = (torch.randn(shape, device="cuda") * 0.02).bfloat16()
    held = nest(weight)
    codes = natural(held.codes.view(torch.uint8)).view(torch.float8_e4m3fn)
    twin = codes.double() * held.twin_scales().double()
    product = TwinProduct(held, measure_twin([held]))
    assert product.most_rows == 64
    bias = torch.randn(shape[0], device="cuda").bfloat16()
    for rows in (1, 5, 16, 31, 64):
        x = torch.randn(rows, shape[1], device="cuda").bfloat16()
        expected = x.double() @ twin.T + bias.double()
        assert (product(x, bias).double() - expected).norm() / expected.norm() < 2.5e-3


def test_unpacked_weight_is_the_exact_one_bit_for_bit() -> None:
    torch.manual_seed(3)
    weight = wild_weight()
    assert torch.equal(exact_weight(nest(weight)).view(torch.int16), weight.view(torch.int16))


def test_product_is_captured_and_replayed_with_other_rows(nested: tuple[torch.Tensor, NestedWeight]) -> None:
    weight, held = nested
    product = NestedProduct(held, first_plan(N, K, torch.cuda.get_device_capability()), Scratch())
    for rows in (3, 64, 100, 700):
        x = torch.randn(rows, K, device="cuda").bfloat16()
        product(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = product(x * 2)
        x.copy_(torch.randn(rows, K, device="cuda").bfloat16())
        graph.replay()
        torch.testing.assert_close(y, torch.nn.functional.linear(x * 2, weight), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("k", [576, 1024, 4096])
def test_codes_of_rows_are_written_in_the_order_of_nested_weights(k: int) -> None:
    from mixquant_agents.quant.ops import rowwise_triton as kernels

    x, residual = (torch.randn(17, k, device="cuda").bfloat16() for _ in range(2))
    gamma, fp8 = torch.rand(k, device="cuda").bfloat16() + 0.5, torch.float8_e4m3fn
    index = torch.tensor([3, -1], dtype=torch.int32, device="cuda")
    for both in (
        lambda **more: kernels.quantize_rows(x, fp8, index, **more),
        lambda **more: kernels.norm_quantize_rows(x, residual, gamma, 1e-6, fp8, index, **more),
        lambda **more: kernels.silu_quantize_rows(torch.cat((x, residual), 1), fp8, index, **more),
    ):
        slots = [torch.empty(2, k, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        plain, sorted_codes = both(slot=slots[0])[0], both(slot=slots[1], ordered=True)[0]
        assert torch.equal(ordered(plain.view(torch.uint8)), sorted_codes.view(torch.uint8))
        assert torch.equal(slots[0][0], slots[1][0]), "exact rows keep the order of their inputs"


def test_rows_do_not_depend_on_each_other(nested: tuple[torch.Tensor, NestedWeight]) -> None:
    _, held = nested
    x = torch.randn(MAX_ROWS, K, device="cuda").bfloat16()
    for tiling in TILINGS:
        tokens = 8 * tiling.nt
        full = nested_linear(x[:tokens].contiguous(), held, tiling)
        other = x[:tokens].clone()
        other[1:] = float("nan")
        assert torch.equal(nested_linear(other, held, tiling)[0], full[0])


def test_measured_plan_has_a_tiling_for_every_number_of_rows(nested: tuple[torch.Tensor, NestedWeight]) -> None:
    weight, held = nested
    scratch = Scratch()
    plan = measure([held], scratch)
    assert plan.piece == MAX_ROWS
    product = NestedProduct(held, plan, scratch)
    x = torch.randn(5, K, device="cuda").bfloat16()
    torch.testing.assert_close(product(x), torch.nn.functional.linear(x, weight), rtol=0.02, atol=0.02)
