"""The 8-bit matrix product: which implementation, chosen per shape by measuring once at start."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping

import torch

from mixquant_agents.quant.ops import rowwise_torch

__all__ = ["PRODUCTS", "GemmTable", "Product", "scaled_product"]

Product = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype, torch.Tensor | None], torch.Tensor
]
"""``(codes [M, K], scales [M, 1], weight codes [N, K], weight scales [N, 1], out dtype, bias [N])`` to ``[M, N]``."""


def _torch(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    # Fast accumulation costs 5e-4 of relative error beside the format's 4e-2, and is 12 % faster.
    return torch._scaled_mm(
        codes,
        weight.t(),
        scale_a=scales,
        scale_b=weight_scales.t(),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


def _cutlass(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    from vllm import _custom_ops as ops

    product: torch.Tensor = ops.cutlass_scaled_mm(codes, weight.t(), scales, weight_scales, dtype, bias)
    return product


def _plain(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    product = rowwise_torch.scaled_mm(codes, scales, weight, weight_scales, dtype)
    return product if bias is None else product + bias


PRODUCTS: Mapping[str, Product] = {"torch": _torch, "cutlass": _cutlass}
"""``torch`` is ``torch._scaled_mm`` with row-wise scales (FP8 alone), ``cutlass`` vLLM's kernel."""


class GemmTable:
    """Which candidate runs a shape. Empty until measured; a shape's winner does not depend on which engine asks."""

    def __init__(self, *candidates: str) -> None:
        """``candidates``: names in :data:`PRODUCTS`; the first runs what was not measured."""
        self.candidates = candidates
        self._winners: dict[tuple[int, int], tuple[list[int], list[str]]] = {}

    def learn(self, n: int, k: int, winners: Mapping[int, str]) -> None:
        """``winners`` names the fastest candidate per measured number of rows."""
        rows = sorted(winners)
        self._winners[n, k] = (rows, [winners[m] for m in rows])

    def pick(self, n: int, k: int, m: int) -> str:
        """The winner at the smallest measured size from ``m`` rows on (the largest measured size above it).

        Products work in tiles of rows, so a size costs what the next full tile costs.
        """
        measured = self._winners.get((n, k))
        if measured is None:
            return self.candidates[0]
        rows, winners = measured
        return winners[min(bisect.bisect_left(rows, m), len(rows) - 1)]

    def summary(self) -> dict[str, dict[int, str]]:
        """``{"NxK": {rows: winner}}``."""
        return {f"{n}x{k}": dict(zip(*pair, strict=True)) for (n, k), pair in self._winners.items()}


def scaled_product(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    table: GemmTable,
) -> torch.Tensor:
    """``(codes * scales) @ (weight * weight_scales).T + bias`` ``[M, N]`` in ``dtype``."""
    if not codes.is_cuda:
        return _plain(codes, scales, weight, weight_scales, dtype, bias)
    name = table.pick(weight.shape[0], weight.shape[1], codes.shape[0])
    return PRODUCTS[name](codes, scales, weight, weight_scales, dtype, bias)
