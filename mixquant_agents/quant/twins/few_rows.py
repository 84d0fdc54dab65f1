"""Products of few unquantized rows held against float64 on a layer's own codes, before drafts run them.

The exact weights would refuse the drafts of a wrong kernel, but each at a draft's price; and numbers that are none
would spoil the probabilities by which sampled drafts are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.row_errors import largest_error

__all__ = ["LIMIT", "check_few_rows"]

LIMIT = 0.01
"""Largest error of a row, of its length: sums are float32, rounded once."""

_OUTPUTS = 64
"""So many of the first and of the last outputs are compared."""


def check_few_rows(
    run: Callable[[torch.Tensor], torch.Tensor],
    codes: torch.Tensor,
    scales: torch.Tensor,
    sizes: Iterable[int],
    dtype: torch.dtype,
) -> None:
    """Hold ``run``, ``[M, K]`` to ``[M, N]``, against ``x · (codes · scales)^T``.

    Args:
        run: the product.
        codes: 8 bits ``[N, K]``, in the order of the rows' inputs.
        scales: float32 ``[N, 1]``.
        sizes: numbers of rows.
        dtype: of the rows.

    Raises:
        FormatRefusedError: it is wrong; says by how much.
    """
    n, k = codes.shape
    count = min(n, _OUTPUTS)
    index = torch.cat([torch.arange(count), torch.arange(n - count, n)]).unique().to(codes.device)
    weight = codes[index].double() * scales[index].double()
    for size in sizes:
        x = torch.randn(size, k, generator=torch.Generator("cpu").manual_seed(size), device="cpu", dtype=torch.float32)
        x[size // 2] *= 300.0
        x = x.to(codes.device, dtype)
        expected = x.double() @ weight.T
        error = largest_error(run(x)[:, index], expected)
        if not error <= LIMIT:
            raise FormatRefusedError(
                f"the product of {size} unquantized rows with {n}x{k} codes is wrong on this device: its largest "
                f"error is {error:.2g} of a row's length, the limit {LIMIT}"
            )
