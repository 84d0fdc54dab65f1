"""Products of any number of rows with nested weights, each by what was fastest for its shape on this device.

Few rows: a kernel that reads the weight nested. More: the rows in pieces, or the weight unpacked into a scratch, which
all products share, and multiplied by torch's product. :func:`measure` finds the tilings and the crossing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from mixquant_agents.quant.nested.kernels import NestedKernel, Unpacker, compile_tilings
from mixquant_agents.quant.nested.layout import NestedWeight, rebuild
from mixquant_agents.quant.nested.tiling import AnyTiling, fitting, token_tiles
from mixquant_agents.quant.timing import replay_microseconds

__all__ = [
    "NestedProduct",
    "ProductPlan",
    "Scratch",
    "TwinProduct",
    "exact_weight",
    "first_plan",
    "measure",
    "measure_twin",
]

_CROSSING = (96, 128, 192, 256, 384, 512, 768, 1024)
"""Rows at which pieces and the unpacked weight are timed."""

_BYTES = 200 * 2**20
"""So many bytes of weights are timed in turn, where there are as many: more than any cache holds."""


@dataclass(frozen=True, slots=True)
class ProductPlan:
    """How products with weights of one shape run.

    Attributes:
        tilings: by token tiles; see :func:`~mixquant_agents.quant.nested.tiling.token_tiles`.
        unpack_from: from so many rows on the weight is unpacked.
        microseconds: what was measured, of one product: by rows, nested and unpacked.
    """

    tilings: Mapping[int, AnyTiling]
    unpack_from: int
    microseconds: Mapping[int, tuple[float, float]]

    @property
    def piece(self) -> int:
        """Most rows of one kernel; 0: no tiling fits the shape, and the weight is always unpacked."""
        return 8 * max(self.tilings, default=0)


class Scratch:
    """Memory for one unpacked weight at a time. Products on one stream share it, captured ones too."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._before: list[torch.Tensor] = []  # captured graphs may write there

    def of(self, weight: NestedWeight) -> torch.Tensor:
        """bfloat16 ``[N, K]``, whatever it holds."""
        n, k = weight.codes.shape
        if self._memory is None or self._memory.numel() < n * k:
            if self._memory is not None:
                self._before.append(self._memory)
            self._memory = torch.empty(n * k, dtype=torch.bfloat16, device=weight.codes.device)
        return self._memory[: n * k].view(n, k)


class NestedProduct:
    """The product of one weight, on a GPU."""

    def __init__(self, weight: NestedWeight, plan: ProductPlan, scratch: Scratch) -> None:
        self.plan = plan
        self._weight = weight
        self._scratch = scratch
        self._unpacker = Unpacker(weight)
        kernels = {tiles: NestedKernel(weight, tiling) for tiles, tiling in plan.tilings.items()}
        self._kernels = [kernels[token_tiles(rows, kernels)] for rows in range(1, plan.piece + 1)]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x · weight^T + bias``: bfloat16 ``[M, K]`` to ``[M, N]``, in float32 and rounded once."""
        rows = x.shape[0]
        if rows >= self.plan.unpack_from:
            return self.unpacked(x, bias)
        x = x.contiguous()
        y = x.new_empty(rows, self._weight.codes.shape[0])
        if 0 < rows <= len(self._kernels):
            self._kernels[rows - 1].into(y, x, bias)
        elif rows:
            self._pieces(y, x, bias)
        return y

    def _pieces(self, y: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        for begin in range(0, x.shape[0], self.plan.piece):
            part = x[begin : begin + self.plan.piece]
            self._kernels[part.shape[0] - 1].into(y[begin:], part, bias)

    def unpacked(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The same, with the weight unpacked first."""
        weight = self._scratch.of(self._weight)
        self._unpacker.into(weight)
        return linear(x, weight, bias)


def exact_weight(weight: NestedWeight) -> torch.Tensor:
    """bfloat16 ``[N, K]``, on any device."""
    if not weight.codes.is_cuda:
        return rebuild(weight)
    out = torch.empty_like(weight.codes, dtype=torch.bfloat16)
    Unpacker(weight).into(out)
    return out


def first_plan(n: int, k: int, capability: tuple[int, int]) -> ProductPlan:
    """A plan without measuring, for weights ``[N, K]``."""
    tilings = {tiles: cuts[0] for tiles, cuts in fitting(n, k, capability).items()}
    return ProductPlan(tilings, 8 * max(tilings, default=0) + 1, {})


class TwinProduct:
    """The product of few unquantized rows with one weight's FP8 twin, on a GPU: reads the codes alone."""

    def __init__(self, weight: NestedWeight, tilings: Mapping[int, AnyTiling]) -> None:
        """``tilings`` by token tiles, as :func:`measure_twin` chooses them."""
        self._outputs = weight.codes.shape[0]
        kernels = {tiles: NestedKernel(weight, tiling) for tiles, tiling in tilings.items()}
        self.most_rows = 8 * max(kernels, default=0)
        self._kernels = [kernels[token_tiles(rows, kernels)] for rows in range(1, self.most_rows + 1)]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """bfloat16 ``[M, K]`` to ``[M, N]``, of 1 to ``most_rows`` rows."""
        y = x.new_empty(x.shape[0], self._outputs)
        self._kernels[x.shape[0] - 1].into(y, x.contiguous(), bias)
        return y


def measure_twin(weights: Sequence[NestedWeight]) -> dict[int, AnyTiling]:
    """The fastest tilings of :class:`TwinProduct` for ``weights``, all of one shape and on one GPU."""
    n, k = weights[0].codes.shape
    device = weights[0].codes.device
    return _fastest(weights, fitting(n, k, torch.cuda.get_device_capability(device), codes_only=True))


def measure(weights: Sequence[NestedWeight], scratch: Scratch) -> ProductPlan:
    """The fastest plan for ``weights``, all of one shape and on one GPU."""
    n, k = weights[0].codes.shape
    device = weights[0].codes.device
    sample = weights[: max(1, _BYTES // weights[0].nbytes)]
    cuts = fitting(n, k, torch.cuda.get_device_capability(device))
    if not cuts:
        return first_plan(n, k, torch.cuda.get_device_capability(device))
    tilings = _fastest(sample, cuts)
    never = ProductPlan(tilings, 2**31, {})
    products = [NestedProduct(weight, never, scratch) for weight in sample]
    microseconds = {}
    for rows in _CROSSING:
        x = torch.randn(rows, k, device=device).bfloat16()
        both = (_timed(products, NestedProduct.__call__, x), _timed(products, NestedProduct.unpacked, x))
        microseconds[rows] = (round(both[0] / len(sample), 1), round(both[1] / len(sample), 1))
    behind = [rows for rows, (nested, unpacked) in microseconds.items() if nested <= unpacked]
    return ProductPlan(tilings, max(behind, default=_CROSSING[0] - 1) + 1, microseconds)


def _fastest(weights: Sequence[NestedWeight], cuts: Mapping[int, Sequence[AnyTiling]]) -> dict[int, AnyTiling]:
    """Of the cuts for each number of token tiles."""
    n, k = weights[0].codes.shape
    device = weights[0].codes.device
    compile_tilings({tiling for candidates in cuts.values() for tiling in candidates}, device.index)
    fastest = {}
    for tiles, candidates in cuts.items():
        x = torch.randn(8 * tiles, k, device=device).bfloat16()
        times = {}
        for tiling in candidates:
            kernels = [NestedKernel(weight, tiling) for weight in weights]
            times[tiling] = replay_microseconds(functools.partial(_run, kernels, x.new_empty(x.shape[0], n), x))
        fastest[tiles] = min(times, key=times.__getitem__)
    return fastest


def _run(kernels: Sequence[NestedKernel], y: torch.Tensor, x: torch.Tensor) -> None:
    for kernel in kernels:
        kernel.into(y, x)


def _timed(
    products: Sequence[NestedProduct], call: Callable[[NestedProduct, torch.Tensor], torch.Tensor], x: torch.Tensor
) -> float:
    return replay_microseconds(lambda: [call(product, x) for product in products], 3)
