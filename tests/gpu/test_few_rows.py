"""The kernel for few unquantized rows against float64, on shapes that tilings cut evenly and on others."""

from __future__ import annotations

import importlib
import types

import pytest
import torch

from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernels() -> types.ModuleType:
    """Imported when a test asks for it: a machine without a GPU need not have Triton."""
    return importlib.import_module("mixquant_agents.quant.ops.few_rows_triton")


@pytest.mark.parametrize("tiling", range(4))
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 4096, 4096), (5, 576, 1536), (16, 960, 576), (17, 272, 528), (32, 512, 4096)]
)
def test_product_is_float64s(
    m: int, n: int, k: int, dtype: torch.dtype, tiling: int, kernels: types.ModuleType
) -> None:
    assert len(kernels.TILINGS) == 4, "each is tried"
    torch.manual_seed(m)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    codes, scales = PlainRows(torch.randn(n, k, device="cuda", dtype=torch.bfloat16)).quantized(dtype)
    bias = torch.randn(n, device="cuda", dtype=torch.bfloat16)
    product = kernels.few_rows_product(x, codes, scales, bias, kernels.TILINGS[tiling])
    exact = x.double() @ (codes.double() * scales.double()).T + bias.double()
    assert float((product.double() - exact).norm() / exact.norm()) < 0.004


def test_rows_beyond_fp16_do_not_become_infinite(kernels: types.ModuleType) -> None:
    x = torch.full((1, 512), 1e30, device="cuda", dtype=torch.bfloat16)
    codes, scales = PlainRows(torch.ones(32, 512, device="cuda", dtype=torch.bfloat16)).quantized(torch.float8_e4m3fn)
    assert torch.isfinite(kernels.few_rows_product(x, codes, scales, None, kernels.TILINGS[0])).all()


def test_twin_takes_few_rows_unquantized_and_more_of_them_quantized(kernels: types.ModuleType) -> None:
    twin = RowwiseTwin("fp8", torch.float8_e4m3fn, "cutlass")
    weight = torch.randn(256, 512, device="cuda", dtype=torch.bfloat16)
    state = twin.build(weight)
    twin.tune_few_rows([(weight, state)])
    for rows in (1, kernels.MOST_ROWS):
        x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
        unquantized = x.double() @ (state.codes.double() * state.scales.double()).T
        product = twin.few_rows(PlainRows(x), state)
        assert float((product.double() - unquantized).norm() / unquantized.norm()) < 0.004
    x = torch.randn(kernels.MOST_ROWS + 1, 512, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(twin.few_rows(PlainRows(x), state), twin.product(PlainRows(x), state))
