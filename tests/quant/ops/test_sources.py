"""What sources give of their rows in NVFP4; exact rows and rows per token are tested where they are used."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.quant.ops import nvfp4_torch
from mixquant_agents.quant.ops.sources import AddNormRows, ExactRows, NormRows, PlainRows, RowSource, SiluRows

M, K = 7, 48
ENCODE = torch.tensor(4.0)


def sources() -> list[RowSource]:
    torch.manual_seed(0)
    x, residual, halves = torch.randn(M, K), torch.randn(M, K), torch.randn(M, 2 * K)
    gamma = torch.rand(K) + 0.5
    x, residual, halves, gamma = (each.bfloat16() for each in (x, residual, halves, gamma))
    return [PlainRows(x), NormRows(x, gamma, 1e-6), AddNormRows(x, residual, gamma, 1e-6), SiluRows(halves)]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_rows_in_nvfp4_are_the_sources_rows_rounded(number: int, scaled: bool) -> None:
    channels = torch.exp2(torch.arange(K) % 7 - 3.0) if scaled else None
    index = torch.tensor([5, -1, 0], dtype=torch.int32)
    filled = [torch.full((3, K), float("nan"), dtype=torch.bfloat16) for _ in range(2)]
    expected = sources()[number].rows_with(ExactRows(index, filled[0]), channels)
    codes, scales = sources()[number].four_over_six(ENCODE, ExactRows(index, filled[1]), channels, 64)
    own_codes, own_scales = nvfp4_torch.quantize_rows(expected, ENCODE, True, padded_columns=64)
    assert torch.equal(codes, own_codes)
    assert torch.equal(scales.view(torch.uint8), own_scales.view(torch.uint8))
    assert torch.equal(filled[0][[0, 2]], filled[1][[0, 2]])
    assert torch.equal(filled[1][[0, 2]], sources()[number].rows()[[5, 0]])
