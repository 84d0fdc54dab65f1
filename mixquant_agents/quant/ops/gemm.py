"""The 8-bit matrix product: which implementation, chosen per shape by measuring once at start.

Candidates for FP8: ``torch`` (``torch._scaled_mm`` with row-wise scales) and ``cutlass`` (vLLM's kernel). INT8 has
``cutlass`` alone. Where nothing was measured, ``torch`` runs FP8: it was ahead on every shape of an 8B model.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import torch

from mixquant_agents.quant.ops import rowwise_torch as reference

__all__ = ["CANDIDATES", "CHOICE", "Chooser", "Product", "scaled_product"]

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
    product = reference.scaled_mm(codes, scales, weight, weight_scales, dtype)
    return product if bias is None else product + bias


CANDIDATES: dict[str, Product] = {"torch": _torch, "cutlass": _cutlass}


class Chooser:
    """Which candidate runs a shape. Empty until measured."""

    def __init__(self) -> None:
        self._table: dict[tuple[torch.dtype, int, int], tuple[list[int], list[str]]] = {}

    def learn(self, dtype: torch.dtype, n: int, k: int, winners: dict[int, str]) -> None:
        """``winners`` names the fastest candidate per measured number of rows."""
        rows = sorted(winners)
        self._table[dtype, n, k] = (rows, [winners[m] for m in rows])

    def pick(self, dtype: torch.dtype, n: int, k: int, m: int) -> str:
        """The winner at the smallest measured size from ``m`` rows on (the largest measured size above it).

        Products work in tiles of rows, so a size costs what the next full tile costs.
        """
        if (dtype, n, k) not in self._table:
            return "cutlass" if dtype == torch.int8 else "torch"
        rows, winners = self._table[dtype, n, k]
        return winners[min(bisect.bisect_left(rows, m), len(rows) - 1)]

    def summary(self) -> dict[str, dict[int, str]]:
        """``{"NxK": {rows: winner}}``."""
        return {f"{n}x{k}": dict(zip(*pair, strict=True)) for (_, n, k), pair in self._table.items()}


CHOICE = Chooser()
"""This process's; a shape's winner does not depend on which engine asks."""


def scaled_product(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(codes * scales) @ (weight * weight_scales).T + bias`` ``[M, N]`` in ``dtype``."""
    if not codes.is_cuda:
        return _plain(codes, scales, weight, weight_scales, dtype, bias)
    name = CHOICE.pick(codes.dtype, weight.shape[0], weight.shape[1], codes.shape[0])
    return CANDIDATES[name](codes, scales, weight, weight_scales, dtype, bias)
