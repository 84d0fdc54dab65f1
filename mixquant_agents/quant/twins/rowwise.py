"""The native 8-bit twin: FP8 (Ada, Hopper) and INT8 (Ampere to Hopper), per-channel weights, per-token activations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.ops.gemm import PRODUCTS, GemmTable, Product, scaled_product
from mixquant_agents.quant.ops.sources import ExactRows, PlainRows, RowSource
from mixquant_agents.quant.timing import replay_microseconds
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, LayerCalibration
from mixquant_agents.quant.twins.few_rows import check_few_rows

__all__ = ["Codes", "RowwiseTwin"]

GEMM_GRID = (16, 64, 128, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096, 8192)
"""Rows at which the candidates for a product are timed."""

FEW_ROWS = (16, 32)
"""The same for products of unquantized rows; more rows are quantized."""


class Codes(NamedTuple):
    """A weight in 8 bits: codes ``[N, K]``, and one float32 scale per output channel, ``[N, 1]``."""

    codes: torch.Tensor
    scales: torch.Tensor


class RowwiseTwin(Twin[Codes]):
    """8-bit codes with one scale per row on both sides. Quantization is fused into the norm or activation before it."""

    captured = True

    def __init__(self, name: str, dtype: torch.dtype, *products: str, ordered: bool = False) -> None:
        """
        Args:
            name: see :class:`~mixquant_agents.quant.twins.base.Twin`.
            dtype: of the codes.
            products: the matrix products that take it, by their names in
                :data:`~mixquant_agents.quant.ops.gemm.PRODUCTS`; the first runs what was not measured.
            ordered: inputs lie in the order of nested weights on both sides
                (:data:`~mixquant_agents.quant.nested.layout.ORDER`).
        """
        self._ordered = ordered
        self.name = name
        self.dtype = dtype
        self.products = GemmTable(*products)
        self._tilings: dict[tuple[int, int, int], int] = {}

    def check(self, n: int, k: int, prefix: str) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: ``N`` and ``K`` must be multiples of 16."""
        if n % 16 or k % 16:
            raise FormatRefusedError(
                f"layer {prefix!r} has {n} outputs and {k} inputs on this rank; 8-bit products need multiples of 16: "
                f"add {prefix.rpartition('.')[2]!r} to ignored_layers, or use policy 'exact'"
            )

    def nbytes(self, n: int, k: int, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return n * k + 4 * n

    def build(self, weight: torch.Tensor, calibration: LayerCalibration = UNCALIBRATED) -> Codes:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return Codes(*PlainRows(weight).quantized(self.dtype))

    def tensors(self, state: Codes) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        return state._asdict()

    def product(
        self, source: RowSource, state: Codes, bias: torch.Tensor | None = None, exact: ExactRows | None = None
    ) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`."""
        codes, scales = source.quantized(self.dtype, exact, self._ordered)
        return scaled_product(codes, scales, state.codes, state.scales, source.x.dtype, bias, self.products)

    def few_rows(self, source: RowSource, state: Codes, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`; unquantized rows, up to 32 of them."""
        rows = source.x.shape[0]
        if self._ordered or not source.x.is_cuda or rows > FEW_ROWS[-1]:
            return self.product(source, state, bias)
        from mixquant_agents.quant.ops.few_rows_triton import TILINGS, few_rows_product

        n, k = state.codes.shape
        tiling = TILINGS[self._tilings.get((n, k, _size(rows)), 0)]
        return few_rows_product(source.rows(), state.codes, state.scales, bias, tiling)

    def tune_few_rows(self, layers: Sequence[tuple[torch.Tensor, Codes]]) -> None:
        """See :class:`~mixquant_agents.quant.twins.base.Twin`: times the tilings on each shape among ``layers``."""
        from mixquant_agents.quant.ops.few_rows_triton import TILINGS, few_rows_product

        for (n, k), same in _by_shape(layers).items():
            for size in FEW_ROWS:
                x = torch.randn(size, k, device=same[0][0].device, dtype=same[0][0].dtype)

                def work(number: int, x: torch.Tensor = x, same: Sequence[tuple[torch.Tensor, Codes]] = same) -> None:
                    for _, state in same:
                        few_rows_product(x, state.codes, state.scales, None, TILINGS[number])

                times = [replay_microseconds(functools.partial(work, number)) for number in range(len(TILINGS))]
                fastest = times.index(min(times))
                run = functools.partial(_few_rows, few_rows_product, same[0][1], TILINGS[fastest])
                check_few_rows(run, *same[0][1], (1, size), x.dtype)
                self._tilings[n, k, size] = fastest

    def tune(self, layers: Sequence[tuple[torch.Tensor, Codes]], most_rows: int | None = None) -> None:
        """Time the candidate products on each shape among ``layers``."""
        for (n, k), same in _by_shape(layers).items():
            # Nested weights are given by their codes.
            dtype = torch.bfloat16 if same[0][0].dtype is self.dtype else same[0][0].dtype
            winners = {}
            for m in GEMM_GRID:
                if most_rows is not None and m > most_rows:
                    break
                x = torch.randn(m, k, device=same[0][0].device, dtype=dtype)
                codes, scales = PlainRows(x).quantized(self.dtype)  # in any order: it takes the same time
                times = {
                    name: replay_microseconds(_products(PRODUCTS[name], codes, scales, dtype, same))
                    for name in self.products.candidates
                }
                winners[m] = min(times, key=lambda name: times[name])
            self.products.learn(n, k, winners)

    def status(self) -> dict[str, Any]:
        """The products that were chosen."""
        tilings = {f"{n}x{k}x{rows}": number for (n, k, rows), number in self._tilings.items()}
        return {"products": self.products.summary(), **({"few_rows": tilings} if tilings else {})}


def _few_rows(run: Callable[..., torch.Tensor], state: Codes, tiling: object, x: torch.Tensor) -> torch.Tensor:
    return run(x, state.codes, state.scales, None, tiling)


def _size(rows: int) -> int:
    """The size at which products of so many rows were timed."""
    return next(size for size in FEW_ROWS if rows <= size)


def _by_shape(
    layers: Sequence[tuple[torch.Tensor, Codes]],
) -> dict[tuple[int, int], list[tuple[torch.Tensor, Codes]]]:
    shapes: dict[tuple[int, int], list[tuple[torch.Tensor, Codes]]] = {}
    for weight, state in layers:
        shapes.setdefault((weight.shape[0], weight.shape[1]), []).append((weight, state))
    return shapes


def _products(
    run: Product,
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
    layers: Sequence[tuple[torch.Tensor, Codes]],
) -> Callable[[], None]:
    def work() -> None:
        for _, state in layers:
            run(codes, scales, state.codes, state.scales, dtype, None)

    return work
