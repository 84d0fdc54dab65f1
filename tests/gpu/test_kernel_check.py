"""The device's own products pass the check at start, with room to the limit, in time."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.kernel_check import LIMIT, Unit, check
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = LayerFormat(NumberFormat.FP8, emulated=False)
PRODUCTS = ["torch", *(["cutlass"] if importlib.util.find_spec("vllm") else [])]


def unit_of(n: int, k: int, product: str) -> Unit:
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.randn(n, k, generator=generator, device=DEVICE, dtype=torch.bfloat16).mul_(0.02)
    twin = RowwiseTwin(FP8.name, torch.float8_e4m3fn, product)
    return Unit(f"a layer of {n}x{k}", FP8, twin, weight, twin.build(weight))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("k", [64, 576, 1536, 4096, 12288, 28672])
def test_right_product_has_room_to_the_limit(k: int, product: str) -> None:
    """Tensor cores add in fewer than 32 bits, which tells most where K is large and one value of a row is."""
    (error,) = check([unit_of(256, k, product)]).errors.values()
    print(f"K={k} {product}: {error:.4f}")
    assert error < LIMIT / 2


def test_check_of_a_models_shapes_takes_under_two_seconds() -> None:
    """Those of an 8B model, kernels compiled before."""
    shapes = [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)]
    units = [unit_of(n, k, PRODUCTS[0]) for n, k in shapes]
    check(units)
    assert check(units).seconds < 2
